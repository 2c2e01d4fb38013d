/*
 * gzip.c
 *		Decompress what was compressed with gzip.
 *
 * With libdeflate, which takes the whole of it at once and is done in a third of
 * the time that zlib needs, through libcurl, piece by piece.
 *
 * This file raises no errors. Memory: the text is malloc'ed; libdeflate's working
 * memory is allocated once in a process.
 */
#include "postgres.h"

#include <libdeflate.h>

#include "gzip.h"

/* What ends a member: its CRC, and the length of what it holds, modulo 2^32. */
#define LENGTH_SIZE 4

/* The least to allocate, since the length at the end may be anything. */
#define LEAST_SIZE ((size_t) 4096)

/* How much the last member says it holds, as little-endian numbers have it. */
static size_t
stated_length(const char *data, size_t len)
{
	size_t		length = 0;

	for (int i = 1; i <= LENGTH_SIZE; i++)
		length = (length << 8) | (unsigned char) data[len - i];
	return length;
}

/* Decompress members, of which there may be several, into a buffer of some size. */
static enum libdeflate_result
decompress(struct libdeflate_decompressor *decompressor, const char *data, size_t len,
		   char *text, size_t size, size_t *text_len)
{
	*text_len = 0;
	do
	{
		size_t		read;
		size_t		written;
		enum libdeflate_result result =
			libdeflate_gzip_decompress_ex(decompressor, data, len, text + *text_len,
										  size - *text_len, &read, &written);

		if (result != LIBDEFLATE_SUCCESS)
			return result;
		data += read;
		len -= read;
		*text_len += written;
	} while (len > 0);
	return LIBDEFLATE_SUCCESS;
}

/*
 * Decompress all of some data into a malloc'ed text with a NUL behind it, which
 * text_len does not count. max_size: how many bytes it may be. Both mean something
 * with GZIP_DONE alone. Lack of memory counts as too large.
 */
GzipResult
gzip_decompress(const char *data, size_t len, size_t max_size, char **text, size_t *text_len)
{
	static struct libdeflate_decompressor *decompressor;
	size_t		size;
	enum libdeflate_result result;

	if (decompressor == NULL)
		decompressor = libdeflate_alloc_decompressor();
	if (decompressor == NULL)
		return GZIP_TOO_LARGE;
	if (len < LENGTH_SIZE)
		return GZIP_CORRUPT;
	for (size = Max(stated_length(data, len), LEAST_SIZE);; size *= 2)
	{
		char	   *buffer;

		size = Min(size, max_size);
		buffer = malloc(size + 1);
		if (buffer == NULL)
			return GZIP_TOO_LARGE;
		result = decompress(decompressor, data, len, buffer, size, text_len);
		if (result == LIBDEFLATE_SUCCESS)
		{
			buffer[*text_len] = '\0';
			*text = buffer;
			return GZIP_DONE;
		}
		free(buffer);
		/* the length at the end was not all, or not true */
		if (result != LIBDEFLATE_INSUFFICIENT_SPACE)
			return GZIP_CORRUPT;
		if (size == max_size)
			return GZIP_TOO_LARGE;
	}
}
