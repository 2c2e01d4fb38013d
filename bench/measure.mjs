// What every measurement is made with: a database with clinisync in it, clinics in the simulator, and
// what a process has used when it is looked at. Knows of no particular measurement.

import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

export const DATABASE = 'bench';
export const CONTACT = 'bench@clinic.example';
// What /proc/PID/stat counts in; 100 a second on every architecture that Debian has.
const TICK_MS = 10;
const KB_PER_MB = 1024;
export const OUTPUT_BYTES = 64 << 20;

const WORKER = `(SELECT pid FROM pg_stat_activity
                 WHERE backend_type = 'clinisync worker' AND datname = current_database())`;

// Read by the server, so that one session can look, do its work, and look again at itself. What the
// postmaster's ended children have used tells of the sessions of others, who end them.
const FUNCTIONS = [
  `CREATE FUNCTION bench_usage(pid int) RETURNS json LANGUAGE sql AS $$
   SELECT json_build_object(
     'pid', pid,
     'ms', extract(epoch FROM clock_timestamp()) * 1000,
     'wal', pg_current_wal_insert_lsn() - '0/0',
     'stat', pg_read_file('/proc/' || pid || '/stat'),
     'postmaster', pg_read_file(format('/proc/%s/stat', split_part(pg_read_file('postmaster.pid'), E'\\n', 1))),
     'status', pg_read_file('/proc/' || pid || '/status'))
   $$`,
  `CREATE FUNCTION bench_private_kb(pid int) RETURNS bigint LANGUAGE sql AS $$
   SELECT substring(s FROM 'VmRSS:\\s+(\\d+)')::bigint - substring(s FROM 'RssShmem:\\s+(\\d+)')::bigint
   FROM pg_read_file('/proc/' || pid || '/status') s
   $$`,
  // All columns but those that are clinisync's own book-keeping.
  `CREATE FUNCTION bench_checksum() RETURNS text LANGUAGE plpgsql AS $$
   DECLARE
     columns text := (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname) FROM pg_attribute
       WHERE attrelid = 'patients'::regclass AND attnum > 0 AND NOT attisdropped
         AND attname NOT IN ('id', 'record_hash', 'first_synced_at', 'last_synced_at'));
     checksum text;
   BEGIN
     EXECUTE format('SELECT count(*) || '' rows, '' || sum(hashtextextended(ROW(%s)::text, 0)::numeric)
                     FROM patients', columns) INTO checksum;
     RETURN checksum;
   END $$`,
];

// Autovacuum then finds nothing to do in the part that is measured, and nobody writes the pages of the
// part before.
export const SETTLE = ['VACUUM ANALYZE patients', 'CHECKPOINT'];
export const EMPTY = ['TRUNCATE patients', ...SETTLE];

export const run = promisify(execFile);

export function fail(message) {
  throw new Error(message);
}

/** Says what is going on, on the terminal. */
export function announce(what, text) {
  console.log(`  ${what.padEnd(11)} ${text}`);
}

/** Runs statements in one session, each in a transaction of its own, and answers the lines they print. */
export async function psql(database, statements) {
  const commands = statements.flatMap((statement) => ['-c', statement]);
  const arguments_ = ['-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', database, ...commands];
  const { stdout } = await run('psql', arguments_, { maxBuffer: OUTPUT_BYTES });
  return stdout.trimEnd().split('\n');
}

/** Minimum, median and maximum. */
export function spread(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return [sorted[0], sorted[sorted.length >> 1], sorted.at(-1)];
}

export function median(values) {
  return spread(values)[1];
}

/** What a process had used in all when bench_usage() looked. */
export function readUsage(line) {
  const { pid, ms, wal, stat, postmaster, status } = JSON.parse(line);
  if (pid === null) fail('the worker is gone; the log of the server says why');
  // The process's name, in parentheses, may hold blanks; utime and stime are the 12th and 13th after it,
  // those of its ended children come next.
  const times = (text) => text.slice(text.lastIndexOf(')') + 2).split(' ').slice(11, 15).map(Number);
  const [user, system] = times(stat);
  const [, , childrenUser, childrenSystem] = times(postmaster);
  const kb = (name) => Number(status.match(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm'))[1]);
  return {
    pid,
    ms,
    wal,
    cpuMs: (user + system) * TICK_MS,
    endedCpuMs: (childrenUser + childrenSystem) * TICK_MS,
    privateMb: (kb('VmRSS') - kb('RssShmem')) / KB_PER_MB,
  };
}

/** What was used between two looks at the same process. */
export function used(before, after) {
  const difference = (name) => after[name] - before[name];
  return {
    ms: difference('ms'),
    cpuMs: difference('cpuMs'),
    endedCpuMs: difference('endedCpuMs'),
    wal: difference('wal'),
  };
}

export async function createDatabase(simulator) {
  await psql('postgres', [
    `CREATE DATABASE ${DATABASE}`,
    `ALTER DATABASE ${DATABASE} SET clinisync.base_url = '${simulator.url}/v1'`,
    `ALTER DATABASE ${DATABASE} SET clinisync.contact_email = '${CONTACT}'`,
    `ALTER DATABASE ${DATABASE} SET clinisync.requests_per_minute = 0`,
    // One worker for everything: its memory is compared with what it was before.
    `ALTER DATABASE ${DATABASE} SET clinisync.idle_timeout = '1h'`,
  ]);
  await psql(DATABASE, ['CREATE EXTENSION clinisync', ...FUNCTIONS]);
}

export function keyOf(organization) {
  return `${organization}-au1`;
}

/** Tells the simulator something, or asks it. */
export async function control(simulator, method, path, content) {
  const body = content === undefined ? undefined : JSON.stringify(content);
  const response = await fetch(`${simulator.url}/control/${path}`, { method, body });
  if (!response.ok) fail(`the simulator refused ${method} ${path}: ${await response.text()}`);
  return response.json();
}

/** Opens a clinic in the simulator, its patients serialised in advance unless told, and connects it. */
export async function openClinic(simulator, organization, account) {
  const key = keyOf(organization);
  await control(simulator, 'PUT', `accounts/${key}`, { warm: true, ...account });
  await psql(DATABASE, [`SELECT cliniko_connect('${organization}', '${key}')`]);
}

/** Forgets a clinic, its patients and its logs, so that nothing that follows has to do with them. */
export async function closeClinic(organization) {
  await psql(DATABASE, [
    `SELECT cliniko_disconnect('${organization}')`,
    `DELETE FROM cliniko_organizations WHERE organization_id = '${organization}'`,
    `DELETE FROM sync_logs WHERE organization_id = '${organization}'`,
    ...EMPTY,
  ]);
}

/** Makes settings the database's. */
export async function setAll(settings) {
  const statements = Object.entries(settings).map(
    ([name, value]) => `ALTER DATABASE ${DATABASE} SET clinisync.${name} = '${value}'`,
  );
  await psql(DATABASE, statements);
}

export async function checksum() {
  return (await psql(DATABASE, ['SELECT bench_checksum()']))[0];
}

/**
 * Waits until no run is left but those of `except`, in the server: a client that polls would take time
 * from the cores that are measured. Then prints how much memory the worker had at most, in kB.
 */
export function awaitSyncs(except = '') {
  return [
    `DO $$ BEGIN
       PERFORM set_config('bench.peak', '0', false);
       LOOP
         PERFORM set_config('bench.peak', greatest(current_setting('bench.peak')::bigint,
                            bench_private_kb(${WORKER}))::text, false);
         EXIT WHEN NOT EXISTS (SELECT FROM sync_logs
                               WHERE status = 'running' AND organization_id <> '${except}');
         COMMIT;
         PERFORM pg_sleep(0.1);
       END LOOP;
     END $$`,
    `SELECT current_setting('bench.peak')`,
  ];
}

export function newestLog(organization) {
  return `SELECT cliniko_sync_logs('${organization}', 1) #> '{logs,0}'`;
}

/** Starts syncs by a statement, waits for them, and answers what that took of time and of the worker. */
export async function measureSyncs(start, except) {
  const usage = `SELECT bench_usage(${WORKER})`;
  // The first one starts the worker.
  const lines = await psql(DATABASE, [usage, start, ...awaitSyncs(except), usage]);
  const after = readUsage(lines.at(-1));
  const before = JSON.parse(lines[0]).pid === null ? { ...after, cpuMs: 0 } : readUsage(lines[0]);
  return { ...used(before, after), peakMb: Number(lines.at(-2)) / KB_PER_MB, pid: after.pid };
}

/** Syncs a clinic of which every patient is to be `outcome`, and answers what that took. */
export async function measureSync(organization, patients, outcome) {
  const usage = await measureSyncs(`SELECT cliniko_sync_all('${organization}')`);
  const log = JSON.parse((await psql(DATABASE, [newestLog(organization)]))[0]);
  if (log.status !== 'completed' || log.metadata[outcome] !== patients) {
    fail(`the sync did not find ${patients} patients ${outcome}: ${JSON.stringify(log)}`);
  }
  return { ...usage, ms: log.metadata.duration_ms };
}
