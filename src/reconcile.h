/*
 * reconcile.h
 *		Rows of patients that Cliniko no longer has.
 */
#ifndef CLINISYNC_RECONCILE_H
#define CLINISYNC_RECONCILE_H

#include "postgres.h"

#include "enumeration.h"
#include "run.h"
#include "transaction.h"

extern TransactionResult reconcile_begin(Enumeration *list);
extern TransactionResult reconcile_name_next(Enumeration *list);
extern TransactionResult reconcile_save(Enumeration *list);

#endif							/* CLINISYNC_RECONCILE_H */
