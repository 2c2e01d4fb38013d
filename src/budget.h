/*
 * budget.h
 *		How many requests a clinic may still send.
 */
#ifndef CLINISYNC_BUDGET_H
#define CLINISYNC_BUDGET_H

#include "postgres.h"

#include "datatype/timestamp.h"

typedef struct Budget Budget;

extern Budget *budget_open(const char *organization_id, int requests_per_minute);
extern void budget_close(Budget *budget);
extern TimestampTz budget_allows_at(const Budget *budget);
extern void budget_spend(Budget *budget, TimestampTz now);
extern TimestampTz budget_void_at(void);

#endif							/* CLINISYNC_BUDGET_H */
