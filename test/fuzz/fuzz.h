/*
 * fuzz.h
 *		What the fuzz targets share.
 *
 * A target is given bytes and checks what the extension makes of them. It may
 * palloc, since each input has a memory context of its own.
 */
#ifndef CLINISYNC_FUZZ_H
#define CLINISYNC_FUZZ_H

#include "postgres.h"

#include "cliniko.h"

/* Kept in every build, and an input that breaks it is a finding. */
#define demand(condition) \
	((condition) ? (void) 0 : fuzz_fail(__FILE__, __LINE__, #condition))

typedef void (*FuzzTarget) (const char *data, size_t size);

extern void fuzz_fail(const char *file, int line, const char *condition)
	__attribute__((noreturn));
extern char *fuzz_copy(const char *data, size_t size);

/* page.c */
extern void fuzz_page(const char *data, size_t size);
/* record.c */
extern void fuzz_record(const char *data, size_t size);
extern void check_record(const JsonObject *record);
/* key.c */
extern void fuzz_key(const char *data, size_t size);
/* url.c */
extern void fuzz_url(const char *data, size_t size);

/* libFuzzer's, or replay.c's */
extern int	LLVMFuzzerRunDriver(int *argc, char ***argv,
								int (*run) (const uint8_t *data, size_t size));

/* What json.c, cliniko.c and patient.c call instead of palloc() and so on. */
extern void *exact_palloc(Size size);
extern void *exact_palloc0(Size size);
extern void *exact_repalloc(void *pointer, Size size);
extern char *exact_pnstrdup(const char *text, Size len);
extern void exact_pfree(void *pointer);

#endif							/* CLINISYNC_FUZZ_H */
