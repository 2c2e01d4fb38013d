/*
 * launcher.h
 *		See to it that every database with unfinished runs has a worker.
 */
#ifndef CLINISYNC_LAUNCHER_H
#define CLINISYNC_LAUNCHER_H

#include "postgres.h"

extern void launcher_register(void);
PGDLLEXPORT void clinisync_launcher_main(Datum arg);

#endif							/* CLINISYNC_LAUNCHER_H */
