// Follows the pages: types their blocks, in their order, into a terminal of the bare machine that test/pages
// has made, and checks after each what the page promises. Runs in that machine's network, beside the simulated
// Cliniko, but not in its files.
//
//	node follow.mjs PID		a process of the machine

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { startSimulator } from '../cliniko/cliniko.mjs';
import { readSection } from './page.mjs';
import { PSQLRC, Terminal } from './terminal.mjs';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
// not to be found in any file but those into which the pages have put it
const KEY = `${Buffer.from(`1-1-${randomBytes(12).toString('hex')}`).toString('base64url')}-au1`;
const KEY_FILE = '/run/cliniko.key';
const ACCOUNT = { patients: 648, archived: 12, latency_ms: 100 };
const PATIENTS = ACCOUNT.patients + ACCOUNT.archived;
const API = 'http://127.0.0.1:8080';
const POSTGREST = 'http://127.0.0.1:3000';
const UNITS = ['clinisync-postgrest', 'clinisync-nginx'];
// systemd's own scale: 0 is not exposed at all, 10 entirely
const MOST_EXPOSURE = 20; // tenths
const EVENT_MS = 60_000;
const ANSWER_MS = 10_000;
const JOB_MS = 180_000; // pg_cron looks at its jobs once a minute
const POLL_MS = 200;
// of what a page shows of an answer, what is another clinic's or another moment's
const OF_THE_MOMENT = new Set(['api_url', 'latency_ms', 'name', 'sync_id']);

const machine = process.argv[2];
const enter = ['--target', machine, '--mount', '--pid', '--net', '--root', '--wd=/', '--'];
const environment = ['env', '-i', 'TERM=dumb', 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'];
const counts = { passed: 0, failed: 0 };

function announce(what, text) {
  console.log(`  ${what.padEnd(11)} ${text}`);
}

/** A block that cannot be followed ends the test: whatever comes after it builds on it. */
class Stuck extends Error {}

// ---- The machine, as its administrator sees it -------------------------------------------------------

/** Runs a program in the machine as root and returns what it prints. */
function run(program, ...args) {
  return execFileSync('nsenter', [...enter, ...environment, program, ...args], { encoding: 'utf8', stdio: 'pipe' });
}

function runAs(user, ...args) {
  return run('setpriv', `--reuid=${user}`, `--regid=${user}`, '--init-groups', ...args);
}

/** Whether a program ends with status 0. */
function succeeds(program, ...args) {
  try {
    program(...args);
    return true;
  } catch (error) {
    if (error.status === undefined) throw error;
    return false;
  }
}

function query(sql, database = 'app') {
  return runAs('postgres', 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', database, '-c', sql).trimEnd();
}

async function until(what, holds, ms = EVENT_MS) {
  for (const deadline = Date.now() + ms; Date.now() < deadline; await delay(POLL_MS)) {
    const value = await holds();
    if (value) return value;
  }
  throw new Error(`not within ${ms / 1000} s: ${what}`);
}

/** What a URL answers, once something listens there. */
async function get(url, { token, method = 'GET' } = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const ask = () => fetch(url, { method, headers, signal: AbortSignal.timeout(ANSWER_MS) });
  return until(`an answer from ${url}`, () => ask().catch(() => null));
}

/** Who may connect how, which the pages leave as it is. */
function accessRules() {
  return run('sh', '-c', 'cat /etc/postgresql/*/main/pg_hba.conf /etc/postgresql/*/main/pg_ident.conf');
}

// ---- Following ---------------------------------------------------------------------------------------

/** Checks one promise. */
async function promise(text, check) {
  try {
    await check();
    counts.passed++;
    announce('', `ok: ${text}`);
  } catch (error) {
    counts.failed++;
    announce('', `NOT OK: ${text}`);
    console.error(error.stderr || error.message);
  }
}

/** Types the lines of a block, and fails with what a line printed where that is an error. */
async function type(terminal, lines, options) {
  let printed = '';
  let command = '';
  for (const line of lines) {
    command = command ? `${command}\n${line}` : line;
    const isLast = line === lines.at(-1);
    const { output, status, more, isPsql } = await terminal.type(line, isLast || options?.secret ? options : {});
    printed += output;
    if (more) continue;
    const failed = isPsql ? /^(psql:.*)?(ERROR|FATAL|invalid command)\b/m.test(output) : status !== '0';
    if (failed) throw new Stuck(`${command}\n${output.split('\n').slice(-60).join('\n')}`);
    command = '';
    if (options?.secret) options = { ...options, secret: undefined };
  }
  return printed;
}

/**
 * Follows one section. steps: for each of its blocks, in order, how it begins, and what is to come of it:
 * check(printed) is called when the block has been typed; for what a command prints, shown(lines, printed)
 * has the lines of the page and what the last command printed. A block without a step fails.
 */
async function follow(terminal, page, section, steps) {
  let printed = '';
  const remaining = [...steps];
  for (const block of section.blocks) {
    const step = remaining.shift();
    const first = block.lines[0];
    if (!step || !first.startsWith(step.begins))
      throw new Stuck(`${page} has a block that this test does not know: ${first}`);
    announce(block.language || 'shown', `${page}, ${section.heading}: ${first}`);
    if (block.language === '') {
      await step.shown(block.lines, printed);
      continue;
    }
    printed = await type(terminal, block.lines, step.typing);
    counts.passed++;
    await step.check(printed);
  }
  if (remaining.length > 0) throw new Stuck(`${page} lacks the block that begins: ${remaining[0].begins}`);
}

/** Follows a command that stands in a sentence; fails if the page no longer has it. */
async function followWords(terminal, page, section, command) {
  if (!section.words.includes(`\`${command}\``)) throw new Stuck(`${page} does not say: ${command}`);
  announce('sh', `${page}, ${section.heading}: ${command}`);
  await type(terminal, [command]);
  counts.passed++;
}

/** The JSON that psql has printed as a table of one column. */
function jsonOf(printed) {
  return JSON.parse(printed.slice(printed.indexOf('{'), printed.lastIndexOf('}') + 1).replaceAll(/ *\+$/gm, ''));
}

/** Compares what a page shows with what there is, but for what is of the moment. */
function isAsShown(lines, printed) {
  const mask = (name, value) => (OF_THE_MOMENT.has(name) ? typeof value : value);
  const masked = (value) => JSON.parse(JSON.stringify(value, mask));
  assert.deepEqual(masked(jsonOf(printed)), masked(JSON.parse(lines.join('\n'))));
}

const newestRun = () =>
  query(`SELECT concat_ws(' ', id, operation_type, status, records_success, records_processed) FROM sync_logs
         WHERE organization_id = 'clinic-1' ORDER BY id DESC LIMIT 1`);

/** Waits until a run with a higher number has completed; returns its number. */
async function untilNewRun(after, kind) {
  const run = await until(`a run of ${kind} after ${after}`, () => {
    const [id, operation, status] = newestRun().split(' ');
    return Number(id) > after && operation === kind && status === 'completed' && id;
  }, JOB_MS);
  return Number(run);
}

// ---- README.md ---------------------------------------------------------------------------------------

async function install(terminal, page) {
  await followWords(terminal, page, readSection(`${ROOT}README.md`, 'See it work'), 'sudo apt-get update && sudo apt-get install git make');
  await follow(terminal, page, readSection(`${ROOT}README.md`, 'Install'), [
    {
      begins: 'sudo apt-get update',
      check: async () => {
        await promise('the server offers the extension, without a restart', () =>
          assert.equal(query("SELECT count(*) FROM pg_available_extensions WHERE name = 'clinisync'", 'postgres'), '1'));
      },
    },
  ]);
}

async function fiveMinutes(terminal, page, simulator) {
  await follow(terminal, page, readSection(`${ROOT}README.md`, 'Five minutes with a real Cliniko account'), [
    {
      begins: 'sudo -u postgres createuser',
      check: async () => {
        await promise('there is a database, in UTF8, and its user is a superuser', () => {
          assert.equal(query('SHOW server_encoding'), 'UTF8');
          assert.equal(query("SELECT rolsuper FROM pg_roles WHERE rolname = 'reader'"), 't');
        });
      },
    },
    {
      begins: 'read -rs key',
      typing: { secret: KEY },
      check: async () => {
        await promise('nothing of the key is shown', () => assert.ok(!terminal.all.includes(KEY)));
        await promise('the server alone may read the file', () => {
          assert.equal(runAs('postgres', 'cat', KEY_FILE), KEY);
          assert.ok(!succeeds(runAs, 'reader', 'test', '-r', KEY_FILE));
        });
      },
    },
    {
      begins: 'CREATE EXTENSION clinisync',
      check: async () => {
        await promise('the extension is there', () =>
          assert.equal(query("SELECT count(*) FROM pg_extension WHERE extname = 'clinisync'"), '1'));
        // what the page has no word for: this Cliniko is elsewhere
        await type(terminal, [`ALTER DATABASE app SET clinisync.base_url = '${simulator.url}/v1';`]);
      },
    },
    {
      begins: "SELECT cliniko_connect('clinic-1', 'file:",
      check: async () => {
        await promise('the file is gone', () => assert.ok(!succeeds(run, 'test', '-e', KEY_FILE)));
        await promise('the clinic is connected, and the tables are there', () =>
          assert.equal(query("SELECT name FROM cliniko_organizations WHERE organization_id = 'clinic-1'"), 'Harbour Physio'));
      },
    },
    {
      begins: 'SELECT jsonb_pretty(cliniko_test_connection',
      check: async (printed) => {
        await promise('Cliniko is reached', () => assert.equal(jsonOf(printed).status, 'connected'));
        await promise('nothing is stored', () => assert.equal(query('SELECT count(*) FROM patients'), '0'));
      },
    },
    {
      begins: ' {',
      shown: (lines, printed) => promise('it answers what the page shows', () => isAsShown(lines, printed)),
    },
    { begins: "SELECT cliniko_sync_all('clinic-1')", check: async () => {} },
    {
      begins: ' {"message": "Sync started"',
      shown: (lines, printed) => promise('it answers what the page shows', () => isAsShown(lines, printed)),
    },
    {
      begins: "SELECT log ->> 'status' AS status",
      typing: { until: new RegExp(`^ completed \\| completed \\| 100.0 +\\| ${PATIENTS} +\\| ${PATIENTS}\\b`, 'm'), ms: EVENT_MS },
      check: async () => {
        await promise(`the run is watched to its end: ${PATIENTS} of ${PATIENTS}`, () =>
          assert.match(newestRun(), new RegExp(` full_patients completed ${PATIENTS} ${PATIENTS}$`)));
      },
    },
    {
      begins: ' status  |  step   | percent | stored | found',
      shown: (lines, printed) =>
        promise('it has the columns that the page shows', () => {
          const columns = (text) => text.split('|').map((name) => name.trim());
          const head = printed.split('\n').find((line) => line.includes('percent'));
          assert.deepEqual(columns(head), columns(lines[0]));
        }),
    },
    {
      begins: 'SELECT jsonb_pretty(cliniko_status',
      check: async (printed) => {
        await promise('the status counts them', () => {
          const { active, archived } = jsonOf(printed.slice(0, printed.indexOf('(1 row)'))).patient_counts;
          assert.deepEqual({ active, archived }, { active: ACCOUNT.patients, archived: ACCOUNT.archived });
        });
        await promise('patients are a SELECT away', () => assert.match(printed, /^\(10 rows\)$/m));
        await promise('the key is in no command line', () => {
          const commands = run('sh', '-c', 'cat /proc/[0-9]*/cmdline').replaceAll('\0', ' ');
          assert.match(commands, /psql app/);
          assert.ok(!commands.includes(KEY));
        });
        await type(terminal, ['\\q']);
        await promise('the key is in no history and no log', () => {
          const written = run('sh', '-c', 'cat /home/reader/.*_history /var/log/postgresql/*.log');
          assert.match(written, /cliniko_connect/);
          assert.ok(!written.includes(KEY));
        });
      },
    },
  ]);
}

async function keepFresh(terminal, page) {
  await follow(terminal, page, readSection(`${ROOT}README.md`, 'Keep it fresh'), [
    {
      begins: 'version=$(psql',
      check: async () => {
        await promise('pg_cron is preloaded', () => assert.equal(query('SHOW shared_preload_libraries'), 'pg_cron'));
        await type(terminal, ['psql app']);
      },
    },
    {
      begins: 'CREATE EXTENSION pg_cron',
      check: async () => {
        // what the page has them do at night and every hour is not waited for
        for (const [job, kind] of [['patients-nightly', 'full_patients'], ['patients-hourly', 'incremental_patients']]) {
          const before = Number(newestRun().split(' ')[0]);
          query(`SELECT cron.alter_job(jobid, schedule => '* * * * *') FROM cron.job WHERE jobname = '${job}'`);
          await promise(`the job ${job} succeeds, and a run of ${kind} completes`, async () => {
            await untilNewRun(before, kind);
            const ended = await until('the end of the job', () =>
              query(`SELECT status, return_message, username FROM cron.job_run_details JOIN cron.job USING (jobid, username)
                     WHERE jobname = '${job}' AND status NOT IN ('starting', 'running') LIMIT 1`));
            assert.match(ended, /^succeeded\|.*\|reader$/);
          });
          query(`SELECT cron.alter_job(jobid, active => false) FROM cron.job WHERE jobname = '${job}'`);
        }
        await type(terminal, ['\\q']);
      },
    },
    {
      begins: '15 2 * * *  psql',
      shown: async ([line]) => {
        const [, command] = line.match(/^(?:\S+ +){5}(.*)$/);
        const before = Number(newestRun().split(' ')[0]);
        await promise('the line for cron starts a run, as cron runs it', async () => {
          const home = ['env', '-i', 'HOME=/home/reader', 'LOGNAME=reader', 'PATH=/usr/bin:/bin', 'SHELL=/bin/sh'];
          assert.match(runAs('reader', ...home, 'sh', '-c', command), /"Sync started"/);
          await untilNewRun(before, 'full_patients');
        });
      },
    },
  ]);
}

// ---- http/README.md ----------------------------------------------------------------------------------

/** What systemd itself thinks of a unit file. */
async function inspectUnit(unit) {
  const file = `/etc/systemd/system/${unit}.service`;
  await promise(`${unit}: systemd finds no fault with the unit`, () => assert.equal(run('systemd-analyze', 'verify', '--man=no', file), ''));
  await promise(`${unit}: its exposure is at most ${MOST_EXPOSURE / 10} of 10`, () => {
    run('systemd-analyze', 'security', '--offline=true', `--threshold=${MOST_EXPOSURE}`, file);
  });
  await promise(`${unit}: it starts with the machine`, () => assert.equal(run('/usr/bin/systemctl', 'is-enabled', unit), 'enabled\n'));
}

async function restApi(terminal, page) {
  const secret = '/etc/clinisync/jwt-secret';
  let token;
  await type(terminal, ['cd http', 'psql app']);
  await follow(terminal, page, readSection(`${ROOT}http/README.md`, 'Set it up'), [
    {
      begins: '\\i setup.sql',
      check: async () => {
        await promise('the login role may do nothing itself', () => {
          assert.equal(query("SELECT rolsuper OR rolinherit FROM pg_roles WHERE rolname = 'authenticator'"), 'f');
          assert.equal(query("SELECT has_table_privilege('authenticator', 'patients', 'SELECT')"), 'f');
        });
        await promise('the login role has a bound of connections and of time', () => {
          assert.equal(query("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'authenticator'"), '25');
          assert.match(query("SELECT rolconfig FROM pg_roles WHERE rolname = 'authenticator'"), /statement_timeout=15s/);
        });
        await type(terminal, ['\\q']);
      },
    },
    {
      begins: 'sudo useradd',
      check: async () => {
        await promise('PostgREST alone may read the secret', () => {
          assert.ok(succeeds(runAs, 'authenticator', 'test', '-r', secret));
          for (const user of ['clinisync-http', 'reader', 'postgres']) assert.ok(!succeeds(runAs, user, 'test', '-r', secret), user);
        });
        await promise('the secret is long enough', () => assert.match(run('cat', secret), /^[0-9a-f]{64}\n$/));
      },
    },
    {
      begins: 'sudo apt-get install --no-install-recommends nodejs npm',
      check: async () => {
        await promise('PostgREST answers, and wants a token', async () => {
          await until('the schema', async () => (await get(`${POSTGREST}/rpc/cliniko_status`, { method: 'POST' })).status === 401);
        });
        await promise('it is connected through the socket, as its own user', () =>
          assert.equal(query("SELECT DISTINCT usename, client_addr IS NULL FROM pg_stat_activity WHERE usename = 'authenticator'"), 'authenticator|t'));
        await inspectUnit('clinisync-postgrest');
      },
    },
    {
      begins: 'sudo apt-get install nginx',
      check: async () => {
        await promise('nginx answers', async () => assert.equal((await get(`${API}/api/v1/openapi.yaml`)).status, 200));
        await promise('a request without a token is refused', async () =>
          assert.equal((await get(`${API}/api/v1/cliniko/status/clinic-1`)).status, 401));
        await promise('it runs as its own user', () =>
          assert.equal(run('stat', '-c', '%U', '/var/lib/clinisync-http/nginx.pid'), 'clinisync-http\n'));
        await promise('without the panel, its page is a 404', async () => assert.equal((await get(`${API}/`)).status, 404));
        await inspectUnit('clinisync-nginx');
      },
    },
    {
      begins: 'sudo apt-get install curl',
      check: async (printed) => {
        await promise('the answer is the status of the clinic', () => {
          const status = JSON.parse(printed.split('\n').find((line) => line.startsWith('{')));
          assert.equal(status.organization_id, 'clinic-1');
          assert.equal(status.sync_status, 'completed');
          assert.equal(status.patient_counts.active, ACCOUNT.patients);
        });
        token = (await terminal.type('echo $TOKEN')).output.trim();
        await promise('the token answers 200 for this clinic, and 404 for another', async () => {
          assert.equal((await get(`${API}/api/v1/cliniko/status/clinic-1`, { token })).status, 200);
          assert.equal((await get(`${API}/api/v1/cliniko/status/clinic-2`, { token })).status, 404);
        });
      },
    },
    {
      begins: 'make -C .. panel',
      check: async () => {
        await promise("the panel's page is served at /, with what it loads", async () => {
          const answer = await get(`${API}/`);
          const html = await answer.text();
          assert.equal(answer.status, 200);
          assert.match(answer.headers.get('content-type'), /^text\/html/);
          const assets = [...html.matchAll(/(?:src|href)="(\/assets\/[^"]+)"/g)].map(([, path]) => path);
          assert.ok(assets.length >= 2, html);
          for (const path of assets) assert.equal((await get(API + path)).status, 200, path);
        });
      },
    },
  ]);
  await type(terminal, [`sudo systemctl reload ${UNITS.join(' ')}`]);
  await promise('both read their configuration anew, and go on', async () => {
    await until('an answer', async () => (await get(`${API}/api/v1/cliniko/status/clinic-1`, { token })).status === 200);
    for (const unit of UNITS) run('systemctl', 'is-active', unit);
  });
}

// ---- From top to bottom ------------------------------------------------------------------------------

async function main() {
  const simulator = await startSimulator();
  await fetch(`${simulator.url}/control/accounts/${KEY}`, { method: 'PUT', body: JSON.stringify(ACCOUNT) });
  writeFileSync(`/proc/${machine}/root/home/reader/.psqlrc`, PSQLRC);
  const terminal = await Terminal.open(`nsenter ${enter.join(' ')} ${environment.join(' ')} su --login reader`);
  try {
    await type(terminal, ['cd clinisync']);
    await install(terminal, 'README');
    const rules = accessRules();
    await fiveMinutes(terminal, 'README', simulator);
    await keepFresh(terminal, 'README');
    await restApi(terminal, 'http/README');
    await promise("pg_hba.conf is as Debian's packages made it", () => assert.equal(accessRules(), rules));
    await promise('the API key is in no file of the machine: no history, no log', () => {
      run('test', '-s', '/home/reader/.psql_history');
      assert.equal(run('sh', '-c', `grep -rlF -e '${KEY}' /home /root /etc /var /tmp || true`), '');
    });
  } catch (error) {
    if (!(error instanceof Stuck)) throw error;
    counts.failed++;
    announce('', 'NOT OK: this cannot be followed');
    console.error(error.message);
  } finally {
    await terminal.close();
    await simulator.close();
  }
  console.log(`${counts.passed} passed, ${counts.failed} failed`);
  process.exitCode = counts.failed === 0 ? 0 : 1;
}

await main();
