/*
 * budget.c
 *		How many requests a clinic may still send.
 *
 * Cliniko allows each of its users 200 requests a minute, whatever they are for.
 * So a budget belongs to the clinic, and outlives its runs: one that is cancelled
 * and started again goes on with what the last has left. It ends with the worker,
 * which therefore stays until it is void.
 *
 * Memory: the moments of a minute's requests for each clinic, in TopMemoryContext,
 * until a minute after the last of them.
 */
#include "postgres.h"

#include "lib/ilist.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "budget.h"

struct Budget
{
	dlist_node	node;
	char	   *organization_id;
	bool		open;
	int			size;			/* requests allowed within a minute */
	int			next;			/* where the oldest is */
	TimestampTz *sent;			/* when the last of them left, as a ring; 0: none yet */
};

static dlist_head budgets = DLIST_STATIC_INIT(budgets);

/* When the last request of a budget was sent. */
static TimestampTz
last_sent(const Budget *budget)
{
	return budget->sent[(budget->next + budget->size - 1) % budget->size];
}

static void
free_budget(Budget *budget)
{
	dlist_delete(&budget->node);
	pfree(budget->organization_id);
	pfree(budget->sent);
	pfree(budget);
}

/* Find the budget of a clinic, or NULL, and forget those that are void. */
static Budget *
find(const char *organization_id)
{
	TimestampTz minute_ago = GetCurrentTimestamp() - USECS_PER_MINUTE;
	Budget	   *found = NULL;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &budgets)
	{
		Budget	   *budget = dlist_container(Budget, node, iter.cur);

		if (strcmp(budget->organization_id, organization_id) == 0)
			found = budget;
		else if (!budget->open && last_sent(budget) < minute_ago)
			free_budget(budget);
	}
	return found;
}

/* Give a budget another size, with the newest of what was sent. */
static void
resize(Budget *budget, int size)
{
	TimestampTz *sent = MemoryContextAllocZero(TopMemoryContext, sizeof(TimestampTz) * size);
	int			kept = Min(size, budget->size);

	for (int i = 0; i < kept; i++)
		sent[size - kept + i] =
			budget->sent[(budget->next + budget->size - kept + i) % budget->size];
	pfree(budget->sent);
	budget->sent = sent;
	budget->size = size;
	budget->next = 0;
}

/* The budget of a clinic, for a run of it. NULL, which never says to wait: no limit. */
Budget *
budget_open(const char *organization_id, int requests_per_minute)
{
	Budget	   *budget = find(organization_id);

	if (requests_per_minute == 0)
		return NULL;
	if (budget == NULL)
	{
		budget = MemoryContextAllocZero(TopMemoryContext, sizeof(Budget));
		budget->organization_id = MemoryContextStrdup(TopMemoryContext, organization_id);
		budget->size = requests_per_minute;
		budget->sent = MemoryContextAllocZero(TopMemoryContext,
											  sizeof(TimestampTz) * requests_per_minute);
		dlist_push_tail(&budgets, &budget->node);
	}
	else if (budget->size != requests_per_minute)
		resize(budget, requests_per_minute);
	budget->open = true;
	return budget;
}

/* The run is over. */
void
budget_close(Budget *budget)
{
	if (budget)
		budget->open = false;
}

/* When the next request may leave; 0: at any time. */
TimestampTz
budget_allows_at(const Budget *budget)
{
	TimestampTz oldest = budget ? budget->sent[budget->next] : 0;

	return oldest > 0 ? oldest + USECS_PER_MINUTE : 0;
}

/* A request leaves. */
void
budget_spend(Budget *budget, TimestampTz now)
{
	if (budget == NULL)
		return;
	budget->sent[budget->next] = now;
	budget->next = (budget->next + 1) % budget->size;
}

/* When no clinic has anything to remember any more; 0: now. */
TimestampTz
budget_void_at(void)
{
	TimestampTz last = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &budgets)
		last = Max(last, last_sent(dlist_container(Budget, node, iter.cur)));
	return last > 0 ? last + USECS_PER_MINUTE : 0;
}
