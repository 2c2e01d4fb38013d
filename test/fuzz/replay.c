/*
 * replay.c
 *		Stands in for libFuzzer's driver: runs inputs that are there, each once.
 *
 * Arguments are files and directories of inputs; options are ignored.
 */
#include "postgres.h"

#include <dirent.h>
#include <sys/stat.h>

#include "fuzz.h"

static int	(*run) (const uint8_t *data, size_t size);
static int	nruns;

/* Give one file to the target. Its name is all that explains a crash. */
static void
replay_file(const char *path, size_t size)
{
	FILE	   *file = fopen(path, "rb");
	uint8_t    *data = malloc(size + 1);

	if (file == NULL || data == NULL || fread(data, 1, size, file) != size)
	{
		perror(path);
		exit(1);
	}
	fclose(file);
	fprintf(stderr, "Running: %s\n", path);
	run(data, size);
	free(data);
	nruns++;
}

static void
replay(const char *path)
{
	struct stat status;
	struct dirent *entry;
	DIR		   *directory;

	if (stat(path, &status) == 0 && S_ISREG(status.st_mode))
		replay_file(path, status.st_size);
	else if ((directory = opendir(path)) != NULL)
	{
		while ((entry = readdir(directory)) != NULL)
		{
			if (entry->d_name[0] != '.')
				replay(psprintf("%s/%s", path, entry->d_name));
		}
		closedir(directory);
	}
	else
	{
		perror(path);
		exit(1);
	}
}

int
LLVMFuzzerRunDriver(int *argc, char ***argv, int (*callback) (const uint8_t *data, size_t size))
{
	run = callback;
	for (int i = 1; i < *argc; i++)
	{
		if ((*argv)[i][0] != '-')
			replay((*argv)[i]);
	}
	fprintf(stderr, "stat::number_of_executed_units: %d\n", nruns);
	return 0;
}
