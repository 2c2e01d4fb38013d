/*
 * first.c
 *		Let a sanitizer's runtime begin before any other library does.
 *
 * AddressSanitizer's runtime begins with the first malloc() of the process.
 * libgpg-error, which PostgreSQL reaches through libldap and GnuTLS, calls
 * bindtextdomain() when it is loaded, and the first malloc() in there finds a
 * lock of glibc's held that beginning needs: every process hangs. Linked with
 * -z initfirst, this library is initialized before all others.
 */
#include <stdlib.h>

static void *volatile memory;

static void __attribute__((constructor))
begin(void)
{
	memory = malloc(1);
	free(memory);
}
