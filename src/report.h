/*
 * report.h
 *		What callers read of an organization, as JSON.
 */
#ifndef CLINISYNC_REPORT_H
#define CLINISYNC_REPORT_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "catalog.h"

/* Which runs to tell of. */
typedef struct LogFilter
{
	int			max_rows;
	const char *status;			/* NULL: any */
	const char *operation_type; /* NULL: any */
} LogFilter;

/* Which patients to tell of. */
typedef struct PatientFilter
{
	int			max_rows;
	int			skip_rows;
	const char *search;			/* part of a name or an address; NULL: any */
	const TimestampTz *last_synced_after;	/* NULL: any */
} PatientFilter;

extern Datum report_organizations(const Catalog *catalog);
extern Datum report_enabled(const Catalog *catalog);
extern Datum report_logs(const Catalog *catalog, const char *org, const LogFilter *filter,
						 bool *running);
extern Datum report_status(const Catalog *catalog, const char *org, bool *running);
extern Datum report_active_patients(const Catalog *catalog, const char *org,
									const PatientFilter *filter);

#endif							/* CLINISYNC_REPORT_H */
