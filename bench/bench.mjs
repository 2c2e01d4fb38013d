// How fast a sync is, beside COPY of the same rows and beside curl, what memory its worker needs, and
// how many dashboards can watch it through the REST API.
// test/run starts it beside a throwaway PostgreSQL server that PGHOST, PGPORT and PGUSER name. Machines
// differ and are noisy, so what counts is ratios of what one run measured; docs/PERFORMANCE.md explains
// the table. BENCH_PATIENTS is the size of the clinic that is compared with COPY.

import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { Agent, get } from 'node:http';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { issueToken } from '../http/token.mjs';
import { startSimulator } from '../test/cliniko/cliniko.mjs';
import { startRestApi } from '../test/http/stack.mjs';

const DATABASE = 'bench';
const CONTACT = 'bench@clinic.example';
const PATIENTS = Number(process.env.BENCH_PATIENTS || 30_000);
// With fewer, CPU time is too little to be told in ticks.
const FEWEST_PATIENTS = 10_000;
const ROUNDS = 3;
const FEW = 1_000;
const MANY = 100_000;
// Watched through the REST API: a clinic at Cliniko's pace, by so many dashboards that poll as fast as
// they can.
const WATCHED = { patients: 5_000, latency_ms: 100 };
const WATCHERS = 16;
const DEMO = fileURLToPath(new URL('../test/demo.mjs', import.meta.url));
// The server reads and writes it; it runs as the user that we run as.
const ROWS_FILE = join(tmpdir(), 'patients.copy');
// What /proc/PID/stat counts in; 100 a second on every architecture that Debian has.
const TICK_MS = 10;
const KB_PER_MB = 1024;
const COLUMN_WIDTH = 10;

const WORKER = `(SELECT pid FROM pg_stat_activity
                 WHERE backend_type = 'clinisync worker' AND datname = current_database())`;

// Read by the server, so that one session can look, do its work, and look again at itself.
const USAGE_FUNCTION = `
  CREATE FUNCTION bench_usage(pid int) RETURNS json LANGUAGE sql AS $$
  SELECT json_build_object(
    'pid', pid,
    'ms', extract(epoch FROM clock_timestamp()) * 1000,
    'wal', pg_current_wal_insert_lsn() - '0/0',
    'stat', pg_read_file('/proc/' || pid || '/stat'),
    'status', pg_read_file('/proc/' || pid || '/status'))
  $$`;

// Autovacuum then finds nothing to do in the part that is measured, and nobody writes the pages of the
// part before.
const SETTLE = ['VACUUM ANALYZE patients', 'CHECKPOINT'];
const EMPTY = ['TRUNCATE patients', ...SETTLE];

const run = promisify(execFile);

function fail(message) {
  throw new Error(message);
}

/** Runs statements in one session, each in a transaction of its own, and answers the lines they print. */
async function psql(database, statements) {
  const commands = statements.flatMap((statement) => ['-c', statement]);
  const { stdout } = await run('psql', ['-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', database, ...commands]);
  return stdout.trimEnd().split('\n');
}

/** What a process had used in all when bench_usage() looked. */
function readUsage(line) {
  const { pid, ms, wal, stat, status } = JSON.parse(line);
  if (pid === null) fail('the worker is gone; the log of the server says why');
  // The process's name, in parentheses, may hold blanks; utime and stime are the 12th and 13th after it.
  const [user, system] = stat.slice(stat.lastIndexOf(')') + 2).split(' ').slice(11, 13).map(Number);
  const kb = (name) => Number(status.match(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm'))[1]);
  return {
    pid,
    ms,
    wal,
    cpuMs: (user + system) * TICK_MS,
    anonymousMb: kb('RssAnon') / KB_PER_MB,
    privateMb: (kb('VmRSS') - kb('RssShmem')) / KB_PER_MB,
  };
}

async function createDatabase(simulator) {
  await psql('postgres', [
    `CREATE DATABASE ${DATABASE}`,
    `ALTER DATABASE ${DATABASE} SET clinisync.base_url = '${simulator.url}/v1'`,
    `ALTER DATABASE ${DATABASE} SET clinisync.contact_email = '${CONTACT}'`,
    `ALTER DATABASE ${DATABASE} SET clinisync.requests_per_minute = 0`,
    // One worker for everything: its memory is compared with what it was before.
    `ALTER DATABASE ${DATABASE} SET clinisync.idle_timeout = '1h'`,
  ]);
  await psql(DATABASE, ['CREATE EXTENSION clinisync', USAGE_FUNCTION]);
}

/** Opens a clinic in the simulator, its patients serialised in advance, and connects it. */
async function openClinic(simulator, organization, account) {
  const key = `${organization}-au1`;
  const response = await fetch(`${simulator.url}/control/accounts/${key}`, {
    method: 'PUT',
    body: JSON.stringify({ ...account, warm: true }),
  });
  if (!response.ok) fail(`the simulator refused the clinic: ${await response.text()}`);
  await psql(DATABASE, [`SELECT cliniko_connect('${organization}', '${key}')`]);
}

function startSync(organization) {
  return `SELECT cliniko_sync_all('${organization}')`;
}

/** Waits in the server: a client that polls would take time from the cores that are measured. */
function awaitSync(organization) {
  return `DO $$ BEGIN
            WHILE cliniko_sync_logs('${organization}', 1) #>> '{logs,0,status}' = 'running' LOOP
              COMMIT;
              PERFORM pg_sleep(0.1);
            END LOOP;
          END $$`;
}

function newestLog(organization) {
  return `SELECT cliniko_sync_logs('${organization}', 1) #> '{logs,0}'`;
}

function checkSync(log, patients, outcome) {
  if (log.status !== 'completed' || log.metadata[outcome] !== patients) {
    fail(`the sync did not find ${patients} patients ${outcome}: ${JSON.stringify(log)}`);
  }
}

/** Syncs a clinic of which every patient is to be `outcome`, and answers what that took. */
async function measureSync(organization, patients, outcome) {
  const usage = `SELECT bench_usage(${WORKER})`;
  const work = [startSync(organization), awaitSync(organization), newestLog(organization)];
  const lines = await psql(DATABASE, [usage, ...work, usage]);
  const [before, after] = [readUsage(lines[0]), readUsage(lines.at(-1))];
  const log = JSON.parse(lines.at(-2));
  checkSync(log, patients, outcome);
  return {
    ms: log.metadata.duration_ms,
    cpuMs: after.cpuMs - before.cpuMs,
    wal: after.wal - before.wal,
  };
}

async function measureCopy() {
  const usage = 'SELECT bench_usage(pg_backend_pid())';
  const lines = await psql(DATABASE, [usage, `COPY patients FROM '${ROWS_FILE}'`, usage]);
  const [before, after] = lines.map(readUsage);
  return { ms: after.ms - before.ms, cpuMs: after.cpuMs - before.cpuMs, wal: after.wal - before.wal };
}

/** The first sync, the unchanged one, and COPY of the rows that they left, each into its own quiet. */
async function measureRound(organization) {
  await psql(DATABASE, EMPTY);
  const first = await measureSync(organization, PATIENTS, 'inserted');
  await psql(DATABASE, SETTLE);
  const unchanged = await measureSync(organization, PATIENTS, 'unchanged');
  await psql(DATABASE, [`COPY patients TO '${ROWS_FILE}'`, ...EMPTY]);
  const copy = await measureCopy();
  return { first, unchanged, copy };
}

/** Syncs a clinic for the first time, and answers what its worker is like afterwards. */
async function measureWorkerAfter(organization, patients) {
  const work = [startSync(organization), awaitSync(organization), newestLog(organization)];
  const lines = await psql(DATABASE, [...work, `SELECT bench_usage(${WORKER})`]);
  checkSync(JSON.parse(lines.at(-2)), patients, 'inserted');
  return readUsage(lines.at(-1));
}

function fetchLog(url, token, agent) {
  return new Promise((resolve, reject) => {
    const start = performance.now();
    get(url, { agent, headers: { authorization: `Bearer ${token}` } }, (response) => {
      const chunks = [];
      response.on('data', (chunk) => chunks.push(chunk));
      response.on('error', reject);
      response.on('end', () => {
        if (response.statusCode !== 200) reject(new Error(`HTTP ${response.statusCode}: ${Buffer.concat(chunks)}`));
        else resolve({ ms: performance.now() - start, log: JSON.parse(Buffer.concat(chunks)).logs[0] });
      });
    }).on('error', reject);
  });
}

/** One dashboard: polls until the run has ended, and answers how long each poll took. */
async function watch(url, token) {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  const times = [];
  for (let status = 'running'; status === 'running'; ) {
    const { ms, log } = await fetchLog(url, token, agent);
    times.push(ms);
    status = log.status;
    if (status === 'failed') fail(`the watched sync failed: ${log.error_details}`);
  }
  agent.destroy();
  return times;
}

/** Many dashboards poll sync-logs?limit=1 through nginx and PostgREST while a sync runs. */
async function measurePolling() {
  const jwtSecret = randomBytes(32).toString('hex');
  await psql(DATABASE, [
    'CREATE ROLE bench_authenticator LOGIN NOINHERIT',
    'CREATE ROLE bench_viewer',
    'GRANT bench_viewer TO bench_authenticator',
    `SELECT cliniko_grant('bench_viewer', 'viewer')`,
  ]);
  const api = await startRestApi({ database: DATABASE, role: 'bench_authenticator', jwtSecret, unlimited: true });
  const token = await issueToken(jwtSecret, { role: 'bench_viewer', org: 'watched' });
  const url = `${api.url}/api/v1/cliniko/sync-logs/watched?limit=1`;
  await psql(DATABASE, [startSync('watched')]);
  const start = performance.now();
  const times = (await Promise.all(Array.from({ length: WATCHERS }, () => watch(url, token)))).flat();
  const seconds = (performance.now() - start) / 1000;
  await api.stop();
  const sorted = times.sort((a, b) => a - b);
  const share = (part) => sorted[Math.floor((sorted.length - 1) * part)];
  return { requests: times.length, seconds, median: share(0.5), late: share(0.95), latest: share(1) };
}

/** The demo compares a clinic of 648 with curl already: runs it, and picks its results. */
async function measureDemo() {
  const { stdout } = await run('node', [DEMO]);
  const pick = (pattern) =>
    stdout.match(pattern)?.[1] ?? fail(`the demo does not say ${pattern}:\n${stdout}`);
  return {
    sync: pick(/Stored .* in (\S+ s),/),
    curl: pick(/one after another: (\S+ s)/),
    ratio: pick(/the sync took (\S+) x/),
  };
}

function announce(what, text) {
  console.log(`  ${what.padEnd(11)} ${text}`);
}

function printRow(name, cells) {
  console.log(`  ${name.padEnd(22)}${cells.map((cell) => String(cell).padStart(COLUMN_WIDTH)).join('')}`);
}

/** Minimum, median and maximum. */
function spread(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return [sorted[0], sorted[sorted.length >> 1], sorted.at(-1)];
}

function median(values) {
  return spread(values)[1];
}

function thousands(number) {
  return Math.round(number).toLocaleString('en');
}

function printComparison(rounds) {
  console.log(`\n  ${thousands(PATIENTS)} patients, no latency, ${rounds.length} rounds; COPY = 1\n`);
  printRow('', ['patients', 'speed', '', '', 'CPU µs', 'CPU speed', '', '', 'WAL bytes']);
  printRow('', [
    'a second', 'minimum', 'median', 'maximum', 'a patient', 'minimum', 'median', 'maximum', 'a patient',
  ]);
  for (const [part, name] of [
    ['first', 'first sync'],
    ['unchanged', 'unchanged re-sync'],
    ['copy', 'COPY'],
  ]) {
    const ratios = (figure) => spread(rounds.map((round) => round.copy[figure] / round[part][figure]));
    printRow(name, [
      thousands(median(rounds.map((round) => (PATIENTS * 1000) / round[part].ms))),
      ...ratios('ms').map((ratio) => ratio.toFixed(2)),
      thousands(median(rounds.map((round) => (round[part].cpuMs * 1000) / PATIENTS))),
      ...ratios('cpuMs').map((ratio) => ratio.toFixed(2)),
      thousands(median(rounds.map((round) => round[part].wal / PATIENTS))),
    ]);
  }
}

function printMemory(few, many) {
  const cells = (usage) => [usage.anonymousMb, usage.privateMb].map((mb) => `${mb.toFixed(1)} MB`);
  console.log("\n  The worker's resident memory\n");
  printRow('', ['anonymous', 'private']);
  printRow(`after ${thousands(FEW)}`, cells(few));
  printRow(`after ${thousands(MANY)} more`, cells(many));
  printRow('difference', cells({
    anonymousMb: many.anonymousMb - few.anonymousMb,
    privateMb: many.privateMb - few.privateMb,
  }));
}

function printDemo({ sync, curl, ratio }) {
  console.log('\n  648 patients at 300 ms a request; curl, the same pages one after another = 1\n');
  printRow('', ['time', 'ratio']);
  printRow('first sync', [sync, ratio]);
  printRow('curl', [curl, '1.00']);
}

function printPolling({ requests, seconds, median: middle, late, latest }) {
  const cells = [thousands(requests), thousands(requests / seconds), ...[middle, late, latest].map((ms) => `${ms.toFixed(1)} ms`)];
  console.log(`\n  ${WATCHERS} clients poll sync-logs?limit=1 through nginx and PostgREST during a sync\n`);
  printRow('', ['requests', 'a second', 'median', '95 %', 'slowest']);
  printRow('polling', cells);
}

async function describeServer() {
  const settings = ['fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers', 'max_wal_size'];
  const shows = ['server_version', ...settings].map((name) => `SHOW ${name}`);
  const [version, ...values] = await psql(DATABASE, shows);
  announce('Machine', `${cpus().length} cores: ${cpus()[0].model}`);
  announce('Server', `PostgreSQL ${version}`);
  announce('', settings.map((name, i) => `${name} ${values[i]}`).join(', '));
}

async function bench() {
  const simulator = await startSimulator();
  await createDatabase(simulator);
  await describeServer();

  // First, while the worker is new: only then does its memory tell anything.
  announce('Measuring', `the worker's memory after ${thousands(FEW)} and ${thousands(MANY)} patients`);
  await openClinic(simulator, 'few', { patients: FEW });
  await openClinic(simulator, 'many', { patients: MANY });
  const few = await measureWorkerAfter('few', FEW);
  const many = await measureWorkerAfter('many', MANY);
  if (many.pid !== few.pid) fail('another worker took over; the log of the server says why');

  await openClinic(simulator, 'clinic', { patients: PATIENTS });
  const rounds = [];
  while (rounds.length < ROUNDS) {
    const round = `round ${rounds.length + 1} of ${ROUNDS}`;
    announce('Measuring', `syncs and COPY of ${thousands(PATIENTS)} patients, ${round}`);
    rounds.push(await measureRound('clinic'));
  }
  announce('Measuring', `${WATCHERS} clients that watch a sync through the REST API`);
  await openClinic(simulator, 'watched', WATCHED);
  const polling = await measurePolling();
  announce('Measuring', 'the demo');
  const demo = await measureDemo();

  printComparison(rounds);
  printMemory(few, many);
  printPolling(polling);
  printDemo(demo);
}

if (!Number.isInteger(PATIENTS) || PATIENTS < FEWEST_PATIENTS) {
  console.error(`clinisync: BENCH_PATIENTS must be a number from ${FEWEST_PATIENTS} up`);
  process.exit(2);
}
try {
  await bench();
} catch (error) {
  console.error(`clinisync: ${error.stack}`);
  process.exit(1);
}
process.exit(0); // the simulator would stay
