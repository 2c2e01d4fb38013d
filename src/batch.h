/*
 * batch.h
 *		Records of Cliniko's on their way into the table patients.
 */
#ifndef CLINISYNC_BATCH_H
#define CLINISYNC_BATCH_H

#include "postgres.h"

#include "enumeration.h"
#include "run.h"
#include "transaction.h"

extern TransactionResult batch_save(Run *run, const Passage *passage);

#endif							/* CLINISYNC_BATCH_H */
