/*
 * patient.h
 *		One Cliniko patient as a row of the table patients.
 */
#ifndef CLINISYNC_PATIENT_H
#define CLINISYNC_PATIENT_H

#include "postgres.h"

#include "json.h"

/* Room for the columns that patient.c fills; checked when it starts. */
#define PATIENT_MAX_COLUMNS 64

/*
 * A record of more bytes is not for patient_read(): hundreds of times what Cliniko's
 * have, and little enough for a list of 500 of them to be read at once.
 */
#define PATIENT_MAX_MB 1
#define PATIENT_MAX_SIZE (PATIENT_MAX_MB * 1024 * 1024)

typedef struct PatientRow
{
	Datum		values[PATIENT_MAX_COLUMNS];
	bool		nulls[PATIENT_MAX_COLUMNS];
	const char *bad_column;		/* the column whose value is impossible, or NULL */
} PatientRow;

extern int	patient_column_count(void);
extern const char *patient_column_name(int column);
extern Oid	patient_column_type(int column);
extern int64 patient_hash(const JsonObject *record);
extern void patient_read(const JsonObject *record, PatientRow *row);

#endif							/* CLINISYNC_PATIENT_H */
