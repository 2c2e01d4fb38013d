/*
 * gzip.h
 *		Decompress what was compressed with gzip.
 */
#ifndef CLINISYNC_GZIP_H
#define CLINISYNC_GZIP_H

#include "postgres.h"

typedef enum GzipResult
{
	GZIP_DONE,
	GZIP_CORRUPT,				/* it is no gzip, or not all of it */
	GZIP_TOO_LARGE				/* what it holds is larger than was allowed */
} GzipResult;

extern GzipResult gzip_decompress(const char *data, size_t len, size_t max_size,
								  char **text, size_t *text_len);

#endif							/* CLINISYNC_GZIP_H */
