/*
 * allocated.c
 *		Tells a test how much memory a server process has allocated (LD_PRELOAD).
 *
 * How much of a process is resident depends on how its allocations happened to lie side
 * by side, and on what the allocator keeps of what was freed. So on SIGRTMAX it writes to
 * ALLOCATED_DIRECTORY/PID how many bytes are allocated with malloc() and not freed:
 * those of libraries, and the blocks of memory contexts.
 *
 * A process must be at rest when it is asked: within malloc() it would wait for itself.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char directory[3000];

static void
report(int signal)
{
	struct mallinfo2 info = mallinfo2();
	char		path[4096];
	char		temporary[4096 + 4];
	char		bytes[32];
	int			fd;

	snprintf(path, sizeof(path), "%s/%d", directory, (int) getpid());
	snprintf(temporary, sizeof(temporary), "%s.tmp", path);
	fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (write(fd, bytes, snprintf(bytes, sizeof(bytes), "%zu\n", info.uordblks + info.hblkhd)) < 0)
		_exit(1);
	close(fd);
	rename(temporary, path);
}

__attribute__((constructor)) static void
wait_for_signal(void)
{
	struct sigaction action = {.sa_handler = report, .sa_flags = SA_RESTART};

	/* a copy: PostgreSQL shows what a process does where the environment was */
	if (getenv("ALLOCATED_DIRECTORY") == NULL)
		return;
	snprintf(directory, sizeof(directory), "%s", getenv("ALLOCATED_DIRECTORY"));
	sigaction(SIGRTMAX, &action, NULL);
}
