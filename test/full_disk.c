/*
 * full_disk.c
 *		A full disk for tests, where a small one cannot be mounted.
 *
 * Preloaded into a server: while there is a file "ballast" in the directory
 * that SMALL_DISK names, no file below that directory can grow, and whoever
 * tries is told what the kernel tells of a full disk.
 */
#define _GNU_SOURCE

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static bool
is_on_full_disk(int fd)
{
	const char *disk = getenv("SMALL_DISK");
	char		entry[64];
	char		path[4096];
	ssize_t		len;

	if (disk == NULL)
		return false;
	snprintf(path, sizeof(path), "%s/ballast", disk);
	if (access(path, F_OK) != 0)
		return false;
	snprintf(entry, sizeof(entry), "/proc/self/fd/%d", fd);
	len = readlink(entry, path, sizeof(path) - 1);
	if (len < 0)
		return false;
	path[len] = '\0';
	return strncmp(path, disk, strlen(disk)) == 0 && path[strlen(disk)] == '/';
}

/* Whether a file may reach to this offset. */
static bool
may_reach(int fd, off64_t end)
{
	struct stat file;

	return !is_on_full_disk(fd) || (fstat(fd, &file) == 0 && file.st_size >= end);
}

static off64_t
total(const struct iovec *parts, int count)
{
	off64_t		size = 0;

	for (int i = 0; i < count; i++)
		size += parts[i].iov_len;
	return size;
}

static ssize_t
no_space(void)
{
	errno = ENOSPC;
	return -1;
}

/* Without and with large files, a name each for the same function. */
#define PWRITE(name, offset_type) \
ssize_t \
name(int fd, const void *data, size_t size, offset_type offset) \
{ \
	ssize_t		(*next) (int, const void *, size_t, offset_type) = dlsym(RTLD_NEXT, #name); \
 \
	return may_reach(fd, offset + size) ? next(fd, data, size, offset) : no_space(); \
}

#define PWRITEV(name, offset_type) \
ssize_t \
name(int fd, const struct iovec *parts, int count, offset_type offset) \
{ \
	ssize_t		(*next) (int, const struct iovec *, int, offset_type) = dlsym(RTLD_NEXT, #name); \
 \
	return may_reach(fd, offset + total(parts, count)) ? next(fd, parts, count, offset) : no_space(); \
}

#define FALLOCATE(name, offset_type) \
int \
name(int fd, offset_type offset, offset_type size) \
{ \
	int			(*next) (int, offset_type, offset_type) = dlsym(RTLD_NEXT, #name); \
 \
	return may_reach(fd, offset + size) ? next(fd, offset, size) : ENOSPC; \
}

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)
FALLOCATE(posix_fallocate, off_t)
FALLOCATE(posix_fallocate64, off64_t)
