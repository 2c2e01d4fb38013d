// The demo's show: a simulated clinic, its first sync, a progress bar that knows nothing but what
// cliniko_sync_logs answers, the REST API with three requests to it, and the admin panel with two clinics
// more: a large one, and one whose key is wrong. test/run starts it beside a throwaway PostgreSQL server
// that PGHOST, PGPORT and PGUSER name. With --stay it leaves everything running until it is stopped.

import { execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { issueToken } from '../http/token.mjs';
import { startSimulator } from './cliniko/cliniko.mjs';
import { setUpDatabase, startRestApi } from './http/stack.mjs';

const DATABASE = 'my_clinic';
const ORGANIZATION = 'my-clinic';
const KEY = 'MS0xLWRlbW8tY2xpbmlj-au1';
const CONTACT = 'demo@clinic.example';
const CLINIC = { patients: 636, archived: 12, latency_ms: 300 };
const OTHERS = [
  { organization: 'large-clinic', name: 'Large Clinic', key: 'MS0yLWxhcmdlLWNsaW5pYw-au1', account: { patients: 5_100, archived: 100, latency_ms: 300 } },
  { organization: 'wrong-key', name: 'Clinic with a Wrong Key', key: 'MS0zLXdyb25nLWtleQ-au1' },
];
const PANEL = fileURLToPath(new URL('../panel/dist', import.meta.url));
const PAGE_SIZE = 100;
const POLL_MS = 100;
const NARROWEST_BAR = 10;
const WIDEST_BAR = 40;
// What a progress line needs in columns: the step with its margins, then percent, count and rate.
const STEP_WIDTH = 15;
const WORD_WIDTHS = [9, 20, 16];
const LONGEST_SYNC_MS = 300_000;
const LOGIN = 'demo_authenticator';
const ROLE = 'demo_manager';
const ADMIN = 'demo_admin';
const TOKEN_LIFE = '1d';
const SHOWN_OF_ANSWER = 160;

const stay = process.argv.includes('--stay');
const terminal = process.stdout.isTTY ? process.stdout : null;
const unicode = /utf-?8/i.test(process.env.LC_ALL || process.env.LC_CTYPE || process.env.LANG || '');

/** A failure that the demo explains in one sentence, without a stack. */
class Failure extends Error {}

/** One psql that stays connected: a question goes in as a line, the answer comes out as a line. */
class Psql {
  constructor(database) {
    const environment = { ...process.env, PGDATABASE: database, PGCLIENTENCODING: 'UTF8' };
    this.process = spawn('psql', ['-XqAt', '-v', 'ON_ERROR_STOP=1'], { env: environment });
    this.complaints = '';
    this.process.stderr.setEncoding('utf8').on('data', (text) => (this.complaints += text));
    this.process.stdin.on('error', () => {}); // psql's end is noticed where its answer is awaited
    this.answers = createInterface({ input: this.process.stdout })[Symbol.asyncIterator]();
  }

  /** Runs a statement that answers one row of one column. */
  async ask(sql) {
    this.process.stdin.write(`${sql};\n`);
    const { done, value } = await this.answers.next();
    if (done) throw new Failure(this.complaints.trim() || 'psql ended unexpectedly');
    return value;
  }

  async askJson(sql) {
    return JSON.parse(await this.ask(sql));
  }

  /** Runs a statement that answers no row. */
  async run(sql) {
    await this.ask(`${sql};\nSELECT true`);
  }

  async close() {
    this.process.stdin.end();
    await once(this.process, 'close');
  }
}

function announce(what, text) {
  console.log(`  ${what.padEnd(11)} ${text}`);
}

function seconds(ms) {
  return `${(ms / 1000).toFixed(2)} s`;
}

function green(text) {
  return terminal && !process.env.NO_COLOR ? `\x1b[32m${text}\x1b[0m` : text;
}

/** A bar of the given width, filled to an eighth of a character where the terminal can show that. */
function bar(width, share) {
  const eighths = Math.round(share * width * 8);
  const full = eighths >> 3;
  if (!unicode) return green('#'.repeat(full)) + '.'.repeat(width - full);
  const filled = '█'.repeat(full) + ' ▏▎▍▌▋▊▉'[eighths & 7].trim();
  return green(filled) + '░'.repeat(width - filled.length);
}

/** What a log says about a run, as a line that fits into the given width. */
function progressLine(log, columns) {
  const { step, progress_percent: percent = 0, patients_found: found, patients_per_second: rate } = log.metadata;
  const words = [
    `${percent.toFixed(1).padStart(5)} %`,
    found == null ? '' : `${log.records_success}/${log.records_processed} patients`,
    rate > 0 ? `${Math.round(rate)} a second` : '',
  ];
  // The bar's width depends on the terminal alone: it must not jump when a word appears.
  const room = (count) => columns - STEP_WIDTH - WORD_WIDTHS.slice(0, count).reduce((a, b) => a + b);
  const count = [3, 2, 1].find((many) => !terminal || room(many) >= NARROWEST_BAR) ?? 1;
  const width = Math.min(room(count), WIDEST_BAR);
  const drawn = terminal && width >= NARROWEST_BAR ? `${bar(width, percent / 100)}  ` : '';
  return `  ${step.padEnd(11)} ${drawn}${words.slice(0, count).join('  ').trimEnd()}`;
}

/** Draws the progress in place on a terminal, and as one line for each news elsewhere. */
class Progress {
  show(log) {
    const columns = terminal ? terminal.getWindowSize()[0] || 80 : 80;
    const line = progressLine(log, columns);
    if (terminal) terminal.write(`\r\x1b[?25l${line}\x1b[K`);
    else if (line !== this.shown) console.log(line);
    this.shown = line;
  }

  end() {
    if (terminal && this.shown !== undefined) terminal.write('\n\x1b[?25h');
    this.shown = undefined;
  }
}

async function openClinic(simulator, key, account) {
  const response = await fetch(`${simulator.url}/control/accounts/${encodeURIComponent(key)}`, {
    method: 'PUT',
    body: JSON.stringify(account),
  });
  if (!response.ok) throw new Failure(`the simulator refused the clinic: ${await response.text()}`);
}

/** Does what the README tells a user to do, up to the first sync. */
async function connectClinic(simulator) {
  const server = new Psql('postgres');
  await server.run(`CREATE DATABASE ${DATABASE}`);
  await server.run(`ALTER DATABASE ${DATABASE} SET clinisync.base_url = '${simulator.url}/v1'`);
  await server.run(`ALTER DATABASE ${DATABASE} SET clinisync.contact_email = '${CONTACT}'`);
  await server.close();

  const database = new Psql(DATABASE);
  await database.run('CREATE EXTENSION clinisync');
  await database.ask(`SELECT cliniko_connect('${ORGANIZATION}', '${KEY}', 'My Clinic')`);
  return database;
}

/** Follows the newest run to its end and returns its log. */
async function follow(database, progress) {
  const deadline = Date.now() + LONGEST_SYNC_MS;
  while (Date.now() < deadline) {
    const { logs } = await database.askJson(`SELECT cliniko_sync_logs('${ORGANIZATION}', 1)`);
    progress.show(logs[0]);
    if (logs[0].status !== 'running') return logs[0];
    await sleep(POLL_MS);
  }
  throw new Failure(`the sync has not ended after ${LONGEST_SYNC_MS / 1000} s`);
}

/** Fetches every page with curl, one after another, and adds up the time the requests took. */
async function fetchWithCurl(simulator) {
  const run = promisify(execFile);
  let patients = 0;
  let pages = 0;
  let ms = 0;
  for (let last = '0', left = true; left; ) {
    const url =
      `${simulator.url}/v1/patients?q[]=archived_at:*&q[]=id:>${last}&sort=id:asc&per_page=${PAGE_SIZE}`;
    const options = ['-sSfg', '--compressed', '-u', `${KEY}:`, '-A', `clinisync-demo (${CONTACT})`];
    const { stdout } = await run(
      'curl',
      [...options, '-H', 'Accept: application/json', '-w', '\n%{time_total}', url],
      { maxBuffer: 64 << 20 },
    );
    const end = stdout.lastIndexOf('\n');
    const page = JSON.parse(stdout.slice(0, end));
    ms += Number(stdout.slice(end)) * 1000;
    pages++;
    patients += page.patients.length;
    left = page.total_entries > page.patients.length;
    last = page.patients.at(-1)?.id;
  }
  return { patients, pages, ms };
}

function reportRun({ records_success: stored, records_processed: found, metadata: run }) {
  const rate = Math.round((stored * 1000) / run.duration_ms);
  const { inserted, updated, unchanged } = run;
  announce('Stored', `${stored} of ${found} patients in ${seconds(run.duration_ms)}, ${rate} a second:`);
  announce('', `${inserted} inserted, ${updated} updated, ${unchanged} unchanged, ${found - stored} failed`);
}

async function reportStatus(database) {
  const status = await database.askJson(`SELECT cliniko_status('${ORGANIZATION}')`);
  const lines = JSON.stringify(status, null, 2).split('\n');
  announce('Status', `SELECT cliniko_status('${ORGANIZATION}')`);
  for (const line of lines) announce('', line);
}

async function reportComparison(simulator, log) {
  const curl = await fetchWithCurl(simulator);
  if (curl.patients !== log.records_success) {
    throw new Failure(`curl fetched ${curl.patients} patients, the sync ${log.records_success}`);
  }
  const ratio = (log.metadata.duration_ms / curl.ms).toFixed(2);
  announce('Compared', `curl alone, the same ${curl.pages} pages one after another: ${seconds(curl.ms)}`);
  announce('', `the sync took ${ratio} x of the bare requests`);
}

/** Connects the clinics that the panel shows beside the first. */
async function connectOthers(simulator, database) {
  for (const { organization, name, key, account } of OTHERS) {
    if (account) await openClinic(simulator, key, account);
    await database.ask(`SELECT cliniko_connect('${organization}', '${key}', '${name}')`);
  }
}

/**
 * Puts the REST API in front of the database, for a role that may do all that a front end does, and for an
 * admin, who sees every clinic in the panel.
 */
async function serveRestApi(database) {
  const jwtSecret = randomBytes(32).toString('hex');
  for (const [role, level] of [[ROLE, 'manager'], [ADMIN, 'admin']]) {
    await database.run(`CREATE ROLE ${role}`);
    await database.ask(`SELECT cliniko_grant('${role}', '${level}')`);
  }
  await setUpDatabase(DATABASE, LOGIN, [ROLE, ADMIN]);
  const api = await startRestApi({ database: DATABASE, role: LOGIN, jwtSecret, panel: PANEL });
  const token = await issueToken(jwtSecret, { role: ROLE, org: ORGANIZATION, expires: TOKEN_LIFE });
  const adminToken = await issueToken(jwtSecret, { role: ADMIN, expires: TOKEN_LIFE });
  return { url: `${api.url}/api/v1/cliniko`, token, panelUrl: `${api.url}/#token=${adminToken}` };
}

function showPanel({ panelUrl }) {
  console.log();
  announce('Panel', 'three clinics in a browser, signed in for a day:\n');
  console.log(`  ${panelUrl}`);
}

/** Prints requests as one would type them, does what was printed, and prints the answers. */
async function showRequests({ url, token }) {
  const authorization = `-H 'Authorization: Bearer ${token}'`;
  const commands = [
    `curl -s ${authorization} ${url}/status/${ORGANIZATION}`,
    `curl -s ${authorization} -X POST ${url}/sync-changes/${ORGANIZATION}`,
    `curl -s ${authorization} '${url}/active-patients/${ORGANIZATION}?limit=1'`,
  ];
  announce('REST', 'the same through nginx and PostgREST, with a token that is good for a day:');
  for (const command of commands) {
    const { stdout } = await promisify(execFile)('sh', ['-c', command]);
    const answer = JSON.parse(stdout);
    if (answer.code) throw new Failure(`the REST API refused ${command}: ${stdout}`);
    console.log(`\n  ${command}`);
    console.log(`  ${stdout.length > SHOWN_OF_ANSWER ? `${stdout.slice(0, SHOWN_OF_ANSWER)}…` : stdout}`);
  }
}

function inviteToLook() {
  const { PGHOST: host, PGPORT: port, PGUSER: user } = process.env;
  announce('Look', `psql -h ${host} -p ${port} -U ${user} ${DATABASE}`);
  announce('', 'SELECT first_name, last_name, date_of_birth, email FROM patients LIMIT 10;');
  announce('', `SELECT cliniko_sync_all('${ORGANIZATION}');`);
  console.log('\n  Everything stays up until Ctrl-C.');
}

async function show(progress, onDone) {
  const simulator = await startSimulator();
  await openClinic(simulator, KEY, CLINIC);
  const database = await connectClinic(simulator);
  announce('Syncing', `SELECT cliniko_sync_all('${ORGANIZATION}')\n`);
  await database.ask(`SELECT cliniko_sync_all('${ORGANIZATION}')`);
  const log = await follow(database, progress);
  progress.end();
  if (log.status !== 'completed') {
    throw new Failure(`the sync failed: ${log.metadata.error_type}: ${log.error_details}`);
  }

  console.log();
  reportRun(log);
  await reportStatus(database);
  await reportComparison(simulator, log);
  await connectOthers(simulator, database);
  const api = await serveRestApi(database);
  await showRequests(api);
  showPanel(api);
  console.log();
  await database.close();
  onDone();
  if (stay) {
    inviteToLook();
    await new Promise(() => {}); // until a signal
  }
}

const progress = new Progress();
let status = 1;
process.on('exit', () => progress.end());
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(status));
try {
  await show(progress, () => (status = 0));
} catch (error) {
  progress.end();
  console.error(`clinisync: ${error instanceof Failure ? error.message : error.stack}`);
}
process.exit(status);
