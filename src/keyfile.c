/*
 * keyfile.c
 *		The file of keys, outside the database, that API keys are sealed with.
 *
 * clinisync.key_file is a text: a key a line, as 64 hexadecimal digits, newest
 * first; lines that are empty or begin with "#" do not count. The first key
 * seals, all open. So a key can be replaced while other databases of the
 * cluster, and dumps, still need the old one; and to restore a dump on another
 * server, one appends the line that it was sealed with.
 *
 * The file is read whenever a key is needed, and nothing of it is kept: what an
 * administrator puts there is in effect at once. It is refused if others than
 * the server's user can read it. It is made when a key is first sealed, never
 * when one is to be opened: a file that is missing then has been lost.
 *
 * Functions answer NULL, or a sentence on what is wrong and what to do, which
 * clinics may read: it names neither path nor key. The server's log gets the
 * path. No error is raised while a key is in memory.
 */
#include "postgres.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/string.h"
#include "miscadmin.h"
#include "storage/fd.h"

#include "clinisync.h"
#include "keyfile.h"

/* Room for as many keys as count, and a page of comments. */
#define MAX_FILE_SIZE (KEYFILE_MOST_KEYS * (2 * KEYFILE_KEY_SIZE + 2) + 4096)

#define HEADER \
	"# The keys that clinisync seals Cliniko's API keys with: the first seals, all open.\n" \
	"# Without this file the API keys in the database cannot be read. Keep a copy of it,\n" \
	"# but not where the database's backups are.\n"

static const char *const missing =
"The file that clinisync.key_file names is missing: put it back from its copy, "
"or pass the API key to cliniko_connect() again.";
static const char *const unreadable =
"The file that clinisync.key_file names cannot be read: let the server's user, and nobody else, "
"read it.";
static const char *const exposed =
"The file that clinisync.key_file names can be read by others than the server's user: "
"take that right away (chmod 0600), and consider cliniko_rotate_key().";
static const char *const malformed =
"The file that clinisync.key_file names is not a list of keys: put it back from its copy, "
"or pass the API key to cliniko_connect() again after moving it away.";
static const char *const unwritable =
"The file that clinisync.key_file names cannot be written: let the server's user write its "
"directory, or put a key (64 hexadecimal digits) into it by hand.";
static const char *const full =
"The file that clinisync.key_file names has as many keys as it may: remove those that neither "
"a database nor a dump needs any more, the last ones first.";
static const char *const no_randomness =
"The server has no random numbers to make a key of: try again.";

/* Where the file is; a relative path begins in the data directory. */
static void
find_path(char path[MAXPGPATH])
{
	char		configured[MAXPGPATH];

	if (is_absolute_path(clinisync_key_file))
		strlcpy(path, clinisync_key_file, MAXPGPATH);
	else
		snprintf(path, MAXPGPATH, "%s/%s", DataDir, clinisync_key_file);
	/* behind a symbolic link, so that a new file does not take the link's place */
	strlcpy(configured, path, MAXPGPATH);
	if (realpath(configured, path) == NULL)
		strlcpy(path, configured, MAXPGPATH);
}

void
keyfile_wipe(KeyRing *ring)
{
	explicit_bzero(ring, sizeof(*ring));
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Read a line as a key. */
static bool
parse_key(const char *line, size_t len, unsigned char *key)
{
	if (len != 2 * KEYFILE_KEY_SIZE)
		return false;
	for (int i = 0; i < KEYFILE_KEY_SIZE; i++)
	{
		int			high = hex_digit(line[2 * i]);
		int			low = hex_digit(line[2 * i + 1]);

		if (high < 0 || low < 0)
			return false;
		key[i] = (high << 4) | low;
	}
	return true;
}

/* Read the file's text. Returns false where a line is no key, or there is none. */
static bool
parse_keys(const char *text, size_t size, KeyRing *ring)
{
	const char *end = text + size;

	ring->count = 0;
	while (text < end)
	{
		const char *newline = memchr(text, '\n', end - text);
		const char *line_end = newline ? newline : end;
		size_t		len = line_end - text;

		while (len > 0 && (text[len - 1] == '\r' || text[len - 1] == ' ' || text[len - 1] == '\t'))
			len--;
		if (len > 0 && text[0] != '#')
		{
			if (ring->count == KEYFILE_MOST_KEYS ||
				!parse_key(text, len, ring->keys[ring->count]))
				return false;
			ring->count++;
		}
		text = line_end + 1;
	}
	return ring->count > 0;
}

/*
 * Whether nobody but the server's user, and root, can read the file: the rule
 * that PostgreSQL has for ssl_key_file.
 */
static bool
is_private(const struct stat *status)
{
	if (status->st_uid == geteuid())
		return (status->st_mode & (S_IRWXG | S_IRWXO)) == 0;
	return status->st_uid == 0 &&
		(status->st_mode & (S_IWGRP | S_IXGRP | S_IRWXO)) == 0;
}

/* Read the open file, wiping what is not needed. */
static const char *
read_open_file(int fd, KeyRing *ring)
{
	char		text[MAX_FILE_SIZE + 1];
	struct stat status;
	ssize_t		size = 0;
	ssize_t		got;
	bool		parsed;

	if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode))
		return unreadable;
	if (!is_private(&status))
		return exposed;
	while (size < sizeof(text) && (got = read(fd, text + size, sizeof(text) - size)) > 0)
		size += got;
	parsed = got >= 0 && size <= MAX_FILE_SIZE && parse_keys(text, size, ring);
	explicit_bzero(text, sizeof(text));
	return got < 0 ? unreadable : parsed ? NULL : malformed;
}

/* Note where a problem is, for those who may know. */
static void
log_problem(const char *path, const char *problem)
{
	if (problem == NULL)
		return;
	ereport(LOG,
			(errmsg("clinisync cannot use its key file \"%s\"", path),
			 errdetail("%s", problem)));
}

/* Read the keys. */
const char *
keyfile_read(KeyRing *ring)
{
	char		path[MAXPGPATH];
	const char *problem;
	int			fd;

	find_path(path);
	/* not waiting for who writes to a pipe */
	fd = BasicOpenFile(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | PG_BINARY);
	if (fd < 0)
		problem = errno == ENOENT ? missing : unreadable;
	else
	{
		problem = read_open_file(fd, ring);
		close(fd);
	}
	if (problem)
		keyfile_wipe(ring);
	log_problem(path, problem);
	return problem;
}

/* Write all of a text to a new file, and make it last. */
static bool
write_new_file(const char *path, const char *text, size_t size)
{
	int			fd = BasicOpenFilePerm(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | PG_BINARY,
									   S_IRUSR | S_IWUSR);
	bool		written;

	if (fd < 0)
		return false;
	written = write(fd, text, size) == size && pg_fsync(fd) == 0;
	return close(fd) == 0 && written;
}

/* The file's text, in memory that is to be wiped. Returns its size. */
static size_t
format_keys(const KeyRing *ring, char text[MAX_FILE_SIZE])
{
	static const char digits[] = "0123456789abcdef";
	char	   *at = text;

	memcpy(at, HEADER, strlen(HEADER));
	at += strlen(HEADER);
	for (int i = 0; i < ring->count; i++)
	{
		for (int k = 0; k < KEYFILE_KEY_SIZE; k++)
		{
			*at++ = digits[ring->keys[i][k] >> 4];
			*at++ = digits[ring->keys[i][k] & 15];
		}
		*at++ = '\n';
	}
	return at - text;
}

/*
 * Write the keys to a file of another name, then move it into place: over what
 * is there, or not, if somebody else has made the file meanwhile.
 */
static const char *
write_file(const KeyRing *ring, bool replace)
{
	char		path[MAXPGPATH];
	char		temporary[MAXPGPATH];
	char		directory[MAXPGPATH];
	char		text[MAX_FILE_SIZE];
	bool		done;

	find_path(path);
	snprintf(temporary, MAXPGPATH, "%s.%d.tmp", path, MyProcPid);
	strlcpy(directory, path, MAXPGPATH);
	get_parent_directory(directory);
	(void) unlink(temporary);	/* of a process that crashed */
	done = write_new_file(temporary, text, format_keys(ring, text));
	explicit_bzero(text, sizeof(text));
	if (done && replace)
		done = durable_rename(temporary, path, LOG) == 0;
	else if (done)
		done = (link(temporary, path) == 0 || errno == EEXIST) &&
			fsync_fname_ext(directory, true, false, LOG) == 0;
	if (!done)
		log_problem(path, unwritable);
	(void) unlink(temporary);
	return done ? NULL : unwritable;
}

/* Put a new key first. */
static const char *
add_random_key(KeyRing *ring)
{
	if (ring->count == KEYFILE_MOST_KEYS)
		return full;
	memmove(ring->keys[1], ring->keys[0], (size_t) ring->count * KEYFILE_KEY_SIZE);
	ring->count++;
	return pg_strong_random(ring->keys[0], KEYFILE_KEY_SIZE) ? NULL : no_randomness;
}

static bool
exists(void)
{
	char		path[MAXPGPATH];
	struct stat status;

	find_path(path);
	return stat(path, &status) == 0 || errno != ENOENT;
}

/* Read the keys, of a file that is made if there is none. */
const char *
keyfile_read_or_make(KeyRing *ring)
{
	const char *problem = NULL;

	if (!exists())
	{
		ring->count = 0;
		problem = add_random_key(ring);
		if (problem == NULL)
			problem = write_file(ring, false);
		keyfile_wipe(ring);
	}
	/* another backend's, should it have been quicker */
	return problem ? problem : keyfile_read(ring);
}

/*
 * Put a new key first into the file. Whoever calls this holds a lock that keeps
 * others from doing the same, in all databases.
 */
const char *
keyfile_add(KeyRing *ring)
{
	const char *problem = keyfile_read_or_make(ring);

	if (problem == NULL)
		problem = add_random_key(ring);
	if (problem == NULL)
		problem = write_file(ring, true);
	if (problem)
		keyfile_wipe(ring);
	return problem;
}
