/*
 * connection.h
 *		Ask Cliniko whether a key works.
 */
#ifndef CLINISYNC_CONNECTION_H
#define CLINISYNC_CONNECTION_H

#include "postgres.h"

#include "cliniko.h"

typedef struct ConnectionReport
{
	ClinikoError error;			/* CLINIKO_NO_ERROR: it works */
	int64		total_patients;
	int64		active_patients;
	char	   *account_id;		/* NULL where the key's role may not see it */
	char	   *account_name;
	char	   *role;
	char	   *reason;			/* what broke the connection, or NULL */
	int64		latency_us;		/* of the answer that decided */
} ConnectionReport;

extern void connection_test(const ClinikoAccount *account, const char *known_account_id,
							ConnectionReport *report);

#endif							/* CLINISYNC_CONNECTION_H */
