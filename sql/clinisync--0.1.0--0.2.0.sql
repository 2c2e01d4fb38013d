/*
 * clinisync 0.1.0 to 0.2.0
 *
 * What ALTER EXTENSION clinisync UPDATE runs in a database that has 0.1.0. In
 * the end that database has what CREATE EXTENSION makes of 0.2.0: whatever has
 * changed in sql/clinisync.sql since 0.1.0 is repeated here, as
 * test/t/041_an_upgrade_keeps_everything.pl insists. Tables are brought up to
 * date by cliniko_setup().
 *
 * So far nothing has changed: 0.2.0 differs in the library alone.
 */
\echo Use "ALTER EXTENSION clinisync UPDATE TO '0.2.0'" to load this file. \quit
