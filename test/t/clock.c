/*
 * clock.c
 *		A clock that a test can put forward, for the server alone (LD_PRELOAD).
 *
 * It runs as the real one does, plus as many microseconds as are written in the
 * file that CLOCK_FILE names, as an int64.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>

static volatile int64_t *ahead_us;

__attribute__((constructor)) static void
open_clock(void)
{
	const char *path = getenv("CLOCK_FILE");
	int			fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void	   *map = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);

	if (map != MAP_FAILED)
		ahead_us = map;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	static int	(*real) (struct timeval *, void *);
	int			result;

	if (real == NULL)
		*(void **) &real = dlsym(RTLD_NEXT, "gettimeofday");
	result = real(now, zone);
	if (ahead_us && result == 0)
	{
		int64_t		us = now->tv_usec + *ahead_us % 1000000;

		now->tv_sec += *ahead_us / 1000000 + us / 1000000;
		now->tv_usec = us % 1000000;
	}
	return result;
}
