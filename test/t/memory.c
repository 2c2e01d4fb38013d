/*
 * memory.c
 *		Tells a test what is in a server process's memory (LD_PRELOAD).
 *
 * A process may always read its own memory, while another's is open to few. So on
 * SIGRTMAX it looks through all that it has mapped, for each of the texts in the file
 * MEMORY_DIRECTORY/texts, and writes to MEMORY_DIRECTORY/PID how often each is there,
 * a number a line, followed by where they are.
 *
 * The file has the texts with every bit inverted, a zero behind each, and they stay
 * that way: else they would be found here.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_TEXT_LENGTH 256
#define MAX_TEXTS 16
#define MAX_PLACES 8
/* Sanitizers reserve address space of terabytes, in which there is no data. */
#define MAX_MAPPING ((unsigned long) 4 << 30)

static char directory[3000];
static unsigned char chunk[1 << 20];
static unsigned char texts[4096];
static const unsigned char *text_at[MAX_TEXTS];
static int	text_len[MAX_TEXTS];
static int	counts[MAX_TEXTS];
static int	ntexts;
static char places[MAX_PLACES * 512];
static int	places_len;

static void
read_texts(void)
{
	char		path[4096];
	ssize_t		size;
	int			fd;

	snprintf(path, sizeof(path), "%s/texts", directory);
	fd = open(path, O_RDONLY);
	size = read(fd, texts, sizeof(texts));
	close(fd);
	ntexts = 0;
	for (ssize_t at = 0; at < size && ntexts < MAX_TEXTS; at += text_len[ntexts++] + 1)
	{
		text_at[ntexts] = texts + at;
		text_len[ntexts] = strlen((char *) texts + at);
		counts[ntexts] = 0;
	}
}

/* Whether a text is here; neither side of the comparison is ever written to memory. */
static int
is_here(const unsigned char *at, int text)
{
	for (int i = 0; i < text_len[text]; i++)
	{
		if ((at[i] ^ text_at[text][i]) != 0xFF)
			return 0;
	}
	return 1;
}

static void
look_through_chunk(size_t size, size_t fresh, unsigned long address, const char *mapping)
{
	for (size_t at = 0; at < fresh; at++)
	{
		for (int text = 0; text < ntexts; text++)
		{
			if (at + text_len[text] > size || !is_here(chunk + at, text))
				continue;
			counts[text]++;
			if (places_len + 512 < sizeof(places))
				places_len += snprintf(places + places_len, 512, "%d at %lx in %.400s\n", text,
									   address + at, mapping);
		}
	}
}

static void
look_through_mapping(int memory, unsigned long start, unsigned long end, const char *mapping)
{
	/* what crosses the end of a chunk is found in the next */
	size_t		fresh = sizeof(chunk) - MAX_TEXT_LENGTH;

	if (end - start > MAX_MAPPING)
		return;
	for (; start < end; start += fresh)
	{
		size_t		wanted = end - start < sizeof(chunk) ? end - start : sizeof(chunk);
		ssize_t		size = pread(memory, chunk, wanted, start);

		if (size > 0)
			look_through_chunk(size, size < fresh ? size : fresh, start, mapping);
		/* of which the next look would find the remains */
		explicit_bzero(chunk, sizeof(chunk));
	}
}

static void
report(void)
{
	char		path[4096];
	char		temporary[4096 + 4];
	char		count[32];
	int			fd;

	snprintf(path, sizeof(path), "%s/%d", directory, (int) getpid());
	snprintf(temporary, sizeof(temporary), "%s.tmp", path);
	fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	for (int text = 0; text < ntexts; text++)
	{
		if (write(fd, count, snprintf(count, sizeof(count), "%d\n", counts[text])) < 0)
			_exit(1);
	}
	if (write(fd, places, places_len) < 0)
		_exit(1);
	close(fd);
	rename(temporary, path);
}

static void
look(int signal)
{
	static char line[4096];
	int			memory = open("/proc/self/mem", O_RDONLY);
	int			maps = open("/proc/self/maps", O_RDONLY);
	size_t		len = 0;

	read_texts();
	places_len = 0;
	while (read(maps, line + len, 1) == 1)
	{
		unsigned long start;
		unsigned long end;
		char		readable;

		if (line[len] != '\n')
		{
			len += len < sizeof(line) - 2;
			continue;
		}
		line[len] = '\0';
		len = 0;
		if (sscanf(line, "%lx-%lx %c", &start, &end, &readable) == 3 && readable == 'r')
			look_through_mapping(memory, start, end, line);
	}
	close(maps);
	close(memory);
	report();
}

__attribute__((constructor)) static void
wait_for_signal(void)
{
	struct sigaction action = {.sa_handler = look, .sa_flags = SA_RESTART};

	/* a copy: PostgreSQL shows what a process does where the environment was */
	if (getenv("MEMORY_DIRECTORY") == NULL)
		return;
	snprintf(directory, sizeof(directory), "%s", getenv("MEMORY_DIRECTORY"));
	sigaction(SIGRTMAX, &action, NULL);
}
