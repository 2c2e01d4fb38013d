/*
 * secret.c
 *		The form in which an API key is kept in a table.
 *
 * A key is kept as a format byte and what that format says. The only format so
 * far is FORMAT_PLAIN: the key itself, protected by the table's privileges and
 * by nothing else. The byte is there so that an encrypted format can be told
 * from it, and old rows be read.
 */
#include "postgres.h"

#include "compat.h"
#include "secret.h"

#define FORMAT_PLAIN 0

/* Put a key into the form that is stored; palloc'ed in the current context. */
bytea *
secret_seal(const char *secret)
{
	size_t		len = strlen(secret);
	bytea	   *sealed = palloc(VARHDRSZ + 1 + len);

	SET_VARSIZE(sealed, VARHDRSZ + 1 + len);
	VARDATA(sealed)[0] = FORMAT_PLAIN;
	memcpy(VARDATA(sealed) + 1, secret, len);
	return sealed;
}

/* Take a key out of the form that is stored, or NULL where that is unreadable. */
char *
secret_open(const bytea *sealed)
{
	size_t		len = VARSIZE_ANY_EXHDR(sealed);

	if (len < 2 || VARDATA_ANY(sealed)[0] != FORMAT_PLAIN)
		return NULL;
	return pnstrdup(VARDATA_ANY(sealed) + 1, len - 1);
}
