/*
 * attendance.h
 *		What workers tell the launcher, through shared memory.
 */
#ifndef CLINISYNC_ATTENDANCE_H
#define CLINISYNC_ATTENDANCE_H

#include "postgres.h"

/* How the runs of a database are looked after. */
typedef enum Attendance
{
	ATTENDED,					/* a worker is there, and has begun to look at them */
	ABANDONED					/* the worker has ended before they had */
} Attendance;

typedef struct AttendanceReport
{
	Oid			database;
	Attendance	attendance;
} AttendanceReport;

/* How many databases can be reported between two looks of the launcher's. */
#define ATTENDANCE_MAX_REPORTS 128

extern void attendance_request_memory(void);
extern void attendance_report(Attendance attendance);
extern void attendance_listen(void);
extern int	attendance_take(AttendanceReport *reports, bool *overflowed);

#endif							/* CLINISYNC_ATTENDANCE_H */
