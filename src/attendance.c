/*
 * attendance.c
 *		What workers tell the launcher, through shared memory.
 *
 * There is a launcher, and this memory, only where the library is in
 * shared_preload_libraries; elsewhere a report goes nowhere. A report says of a
 * database whether its runs are looked after. Only the last one counts, so there
 * is one place for each database; should these run out, the launcher is told
 * that, and looks at all databases.
 *
 * A crash of the server clears this memory and restarts the launcher, which then
 * looks at all databases as well.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "storage/spin.h"

#include "attendance.h"

typedef struct Board
{
	slock_t		mutex;			/* protects all that follows */
	Latch	   *launcher;		/* NULL: nobody listens */
	bool		overflowed;
	int			nreports;
	AttendanceReport reports[ATTENDANCE_MAX_REPORTS];
} Board;

static Board *board;			/* NULL: the library was not preloaded */

static shmem_request_hook_type next_request_hook;
static shmem_startup_hook_type next_startup_hook;

static void
request_memory(void)
{
	if (next_request_hook)
		next_request_hook();
	RequestAddinShmemSpace(sizeof(Board));
}

static void
set_up_memory(void)
{
	bool		found;

	if (next_startup_hook)
		next_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	board = ShmemInitStruct("clinisync attendance", sizeof(Board), &found);
	if (!found)
	{
		memset(board, 0, sizeof(Board));
		SpinLockInit(&board->mutex);
	}
	LWLockRelease(AddinShmemInitLock);
}

/* Have the memory made; called while the postmaster preloads libraries. */
void
attendance_request_memory(void)
{
	next_request_hook = shmem_request_hook;
	shmem_request_hook = request_memory;
	next_startup_hook = shmem_startup_hook;
	shmem_startup_hook = set_up_memory;
}

/* Report how the runs of this database are looked after. Must not fail. */
void
attendance_report(Attendance attendance)
{
	Latch	   *launcher;
	int			i = 0;

	if (board == NULL)
		return;
	SpinLockAcquire(&board->mutex);
	while (i < board->nreports && board->reports[i].database != MyDatabaseId)
		i++;
	if (i < ATTENDANCE_MAX_REPORTS)
	{
		board->reports[i] = (AttendanceReport) {MyDatabaseId, attendance};
		board->nreports = Max(board->nreports, i + 1);
	}
	else
		board->overflowed = true;
	launcher = board->launcher;
	SpinLockRelease(&board->mutex);
	if (launcher)
		SetLatch(launcher);
}

static void
stop_listening(int code, Datum arg)
{
	SpinLockAcquire(&board->mutex);
	board->launcher = NULL;
	SpinLockRelease(&board->mutex);
}

/* Have this process's latch set by whatever is reported. */
void
attendance_listen(void)
{
	SpinLockAcquire(&board->mutex);
	board->launcher = MyLatch;
	SpinLockRelease(&board->mutex);
	before_shmem_exit(stop_listening, (Datum) 0);
}

/* Take all reports off the board. overflowed: there were more. */
int
attendance_take(AttendanceReport *reports, bool *overflowed)
{
	int			count;

	SpinLockAcquire(&board->mutex);
	count = board->nreports;
	memcpy(reports, board->reports, sizeof(AttendanceReport) * count);
	*overflowed = board->overflowed;
	board->nreports = 0;
	board->overflowed = false;
	SpinLockRelease(&board->mutex);
	return count;
}
