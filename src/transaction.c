/*
 * transaction.c
 *		One transaction of the worker's, from beginning to end.
 *
 * Everything that the worker does in SQL happens in here, as the tables' owner,
 * and nothing is held when it is over. An error inside is caught in this one
 * place and becomes a TransactionResult; what is kept of it is its SQLSTATE,
 * never the message: that may hold a patient's data.
 *
 * Memory: what a transaction needs ends with it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "clinisync.h"
#include "identity.h"
#include "statement.h"
#include "transaction.h"

/* The SQLSTATE of the last transaction that failed. */
static int	last_sqlstate;

/* Where the tables were when they were last seen; for a farewell. */
static Catalog last_catalog;

const char *
transaction_last_sqlstate(void)
{
	return unpack_sql_state(last_sqlstate);
}

/*
 * Whether an error is about the record that was being written, rather than
 * about the state of the database: data, constraints, what triggers raise.
 */
bool
transaction_is_about_record(int sqlstate)
{
	static const char *const others[] = {
		"08", "0A", "25", "26", "28", "2D", "34", "3D", "3F", "40", "42", "53",
		"55", "57", "58", "F0", "HV", "XX", "PT"
	};
	const char *code = unpack_sql_state(sqlstate);

	for (int i = 0; i < lengthof(others); i++)
	{
		if (strncmp(code, others[i], 2) == 0)
			return false;
	}
	return true;
}

/* Likewise, of the error that the last transaction failed with. */
bool
transaction_last_was_about_record(void)
{
	return transaction_is_about_record(last_sqlstate);
}

static TransactionResult
classify(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
			return TRANSACTION_BUSY;
	}
	switch (sqlstate)
	{
		case ERRCODE_CLINISYNC_GONE:
			return TRANSACTION_NOT_RUNNING;
			/* the tables are not to be used, until somebody says or mends it */
		case ERRCODE_CLINISYNC_CONFLICT:
		case ERRCODE_LOCK_NOT_AVAILABLE:
		case ERRCODE_QUERY_CANCELED:
		case ERRCODE_OBJECT_IN_USE:
			return TRANSACTION_BUSY;
	}
	return TRANSACTION_FAILED;
}

/* Keep where the tables are beyond the transaction. */
static void
remember(const Catalog *catalog)
{
	if (last_catalog.schema == NULL || strcmp(last_catalog.schema, catalog->schema) != 0)
		last_catalog.schema = MemoryContextStrdup(TopMemoryContext, catalog->schema);
	last_catalog.owner = catalog->owner;
	last_catalog.namespace = catalog->namespace;
	memcpy(last_catalog.tables, catalog->tables, sizeof(catalog->tables));
}

/*
 * Run some work in a transaction of its own, as the tables' owner. Constraints
 * that users have declared deferred are checked at once: PostgreSQL defers none
 * in a security-restricted operation, and a record that violates one is then
 * found where it costs that record alone. The owner's identity lasts through
 * the commit all the same.
 */
static TransactionResult
transaction(TransactionWork work, void *arg, bool farewell)
{
	MemoryContext context = CurrentMemoryContext;
	volatile TransactionResult result = TRANSACTION_DONE;
	/* SET CONSTRAINTS ALL IMMEDIATE */
	ConstraintsSetStmt immediate = {.type = T_ConstraintsSetStmt};

	/* lock_timeout works by a SIGINT to ourselves, which is ignored elsewhere */
	pqsignal(SIGINT, StatementCancelHandler);
	PG_TRY();
	{
		Identity	worker;
		Catalog		catalog;

		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		if (farewell && last_catalog.schema != NULL)
			catalog = last_catalog;
		else if (!catalog_find(&catalog) || catalog.state == CATALOG_INCOMPLETE)
			result = TRANSACTION_UNINSTALLED;
		else
		{
			catalog_require_tables(&catalog);
			remember(&catalog);
		}

		if (result == TRANSACTION_UNINSTALLED)
			AbortCurrentTransaction();
		else
		{
			identity_become(catalog.owner, &worker);
			SPI_connect();
			PushActiveSnapshot(GetTransactionSnapshot());
			AfterTriggerSetState(&immediate);
			work(&catalog, arg);
			PopActiveSnapshot();
			SPI_finish();
			CommitTransactionCommand();
			identity_resume(&worker);
		}
	}
	PG_CATCH();
	{
		last_sqlstate = geterrcode();
		AbortCurrentTransaction();
		FlushErrorState();
		statement_renew_all();
		result = transaction_last_was_about_record() ? TRANSACTION_FAILED : classify(last_sqlstate);
	}
	PG_END_TRY();
	pqsignal(SIGINT, SIG_IGN);
	QueryCancelPending = false;
	MemoryContextSwitchTo(context);
	pgstat_report_stat(false);
	return result;
}

/*
 * To be called by the work: its commit need not be on disk when the transaction
 * is over. After a crash of the server the last of such transactions may be missing
 * (of half a second, or of three times wal_writer_delay), from the end and each as a
 * whole; a commit without this has all that came before it on disk.
 */
void
transaction_commit_lazily(void)
{
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

/* Run some work in a transaction. */
TransactionResult
transaction_run(TransactionWork work, void *arg)
{
	return transaction(work, arg, false);
}

/* Likewise, in the tables as they were last seen, though the extension was dropped. */
TransactionResult
transaction_run_farewell(TransactionWork work, void *arg)
{
	return transaction(work, arg, true);
}
