/*
 * fuzz.c
 *		Run a fuzz target inside a server.
 *
 * The SQL function fuzz(target, arguments) hands a target to libFuzzer's driver
 * within a real backend, so that what is fuzzed is the extension as it is, with
 * PostgreSQL's own jsonb, memory and errors, and nothing has to be simulated.
 * It does not return: the driver ends the process.
 *
 * PostgreSQL cuts its memory out of large blocks, in which a sanitizer cannot
 * tell one piece from the next. So the files that read what Cliniko sends get
 * each piece from malloc, just as large as they ask for; it is freed when the
 * input is done with.
 */
#include "postgres.h"

#include <signal.h>

#include "catalog/pg_type.h"
#include "lib/ilist.h"
#include "libpq/pqsignal.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "compat.h"
#include "fuzz.h"

SQL_FUNCTION(fuzz);

static const struct
{
	const char *name;
	FuzzTarget	run;
}			targets[] = {
	{"page", fuzz_page},
	{"record", fuzz_record},
	{"key", fuzz_key},
	{"url", fuzz_url},
};

static FuzzTarget target;
static MemoryContext input_context;

/* A piece of memory; the bytes asked for follow it. */
typedef struct Piece
{
	dlist_node	node;
} Piece;

static dlist_head pieces = DLIST_STATIC_INIT(pieces);

void *
exact_palloc(Size size)
{
	Piece	   *piece = malloc(sizeof(Piece) + size);

	if (piece == NULL || !AllocSizeIsValid(size))
		elog(ERROR, "invalid memory alloc request size %zu", size);
	dlist_push_tail(&pieces, &piece->node);
	return piece + 1;
}

void *
exact_palloc0(Size size)
{
	return memset(exact_palloc(size), 0, size);
}

char *
exact_pnstrdup(const char *text, Size len)
{
	char	   *copy;

	len = strnlen(text, len);
	copy = memcpy(exact_palloc(len + 1), text, len);
	copy[len] = '\0';
	return copy;
}

void
exact_pfree(void *pointer)
{
	Piece	   *piece = (Piece *) pointer - 1;

	dlist_delete(&piece->node);
	free(piece);
}

void *
exact_repalloc(void *pointer, Size size)
{
	Piece	   *piece = (Piece *) pointer - 1;

	dlist_delete(&piece->node);
	piece = realloc(piece, sizeof(Piece) + size);
	if (piece == NULL)
		elog(ERROR, "invalid memory alloc request size %zu", size);
	dlist_push_tail(&pieces, &piece->node);
	return piece + 1;
}

/* Bytes with nothing behind them but a NUL, until the input is done with. */
char *
fuzz_copy(const char *data, size_t size)
{
	char	   *copy = memcpy(exact_palloc(size + 1), data, size);

	copy[size] = '\0';
	return copy;
}

/* Report a finding to the driver, which keeps the input that made it. */
void
fuzz_fail(const char *file, int line, const char *condition)
{
	fprintf(stderr, "%s:%d: not so: %s\n", file, line, condition);
	abort();
}

/* Give an input to the target. No error may come out of it. */
static int
run_input(const uint8_t *data, size_t size)
{
	MemoryContextSwitchTo(input_context);
	PG_TRY();
	{
		target((const char *) data, size);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(input_context);
		fuzz_fail(__FILE__, __LINE__, CopyErrorData()->message);
	}
	PG_END_TRY();
	while (!dlist_is_empty(&pieces))
		free(dlist_container(Piece, node, dlist_pop_head_node(&pieces)));
	MemoryContextReset(input_context);
	return 0;
}

/* The words of an array of text. */
static char **
read_arguments(ArrayType *array, int *argc)
{
	Datum	   *words;
	bool	   *nulls;
	char	  **argv;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &words, &nulls, argc);
	argv = palloc0(sizeof(char *) * (*argc + 1));
	for (int i = 0; i < *argc; i++)
		argv[i] = TextDatumGetCString(words[i]);
	return argv;
}

/* fuzz(target text, arguments text[]), the first of which is the program's name */
Datum
fuzz(PG_FUNCTION_ARGS)
{
	static const int signals[] = {SIGALRM, SIGFPE, SIGINT, SIGTERM};
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int			argc;
	char	  **argv = read_arguments(PG_GETARG_ARRAYTYPE_P(1), &argc);

	for (int i = 0; i < lengthof(targets); i++)
	{
		if (strcmp(targets[i].name, name) == 0)
			target = targets[i].run;
	}
	if (target == NULL)
		elog(ERROR, "no such target: %s", name);
	input_context = AllocSetContextCreate(TopMemoryContext, "fuzz", ALLOCSET_DEFAULT_SIZES);
	/* libFuzzer takes only signals that nobody has taken */
	for (int i = 0; i < lengthof(signals); i++)
		pqsignal(signals[i], SIG_DFL);
	exit(LLVMFuzzerRunDriver(&argc, &argv, run_input));
}
