/*
 * secret.h
 *		The form in which an API key is kept in a table.
 */
#ifndef CLINISYNC_SECRET_H
#define CLINISYNC_SECRET_H

#include "postgres.h"

extern bytea *secret_seal(const char *secret);
extern char *secret_open(const bytea *sealed);

#endif							/* CLINISYNC_SECRET_H */
