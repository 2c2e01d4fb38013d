/*
 * keyfile.h
 *		The file of keys, outside the database, that API keys are sealed with.
 */
#ifndef CLINISYNC_KEYFILE_H
#define CLINISYNC_KEYFILE_H

#include "postgres.h"

/* In bytes: AES-256. */
#define KEYFILE_KEY_SIZE 32
#define KEYFILE_MOST_KEYS 64

/* The keys of the file, newest first. To be wiped by keyfile_wipe(). */
typedef struct KeyRing
{
	int			count;
	unsigned char keys[KEYFILE_MOST_KEYS][KEYFILE_KEY_SIZE];
} KeyRing;

extern const char *keyfile_read(KeyRing *ring);
extern const char *keyfile_read_or_make(KeyRing *ring);
extern const char *keyfile_add(KeyRing *ring);
extern void keyfile_wipe(KeyRing *ring);

#endif							/* CLINISYNC_KEYFILE_H */
