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
 * A record of more bytes is not for patient_read(). Cliniko's have a few kilobytes; and
 * of these, the longest list that a caller can ask for is still less than the 256 MB
 * that jsonb can hold.
 */
#define PATIENT_MAX_KB 512
#define PATIENT_MAX_SIZE (PATIENT_MAX_KB * 1024)

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
