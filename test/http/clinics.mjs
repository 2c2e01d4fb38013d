// A database with clinics in it and the REST API in front of it, as a test sees it:
//
//   const db = await openClinics('matrix', { clinics: { mine: { patients: 120 } } });
//   const token = await db.token('viewer', 'mine');
//   await db.api.stop(); …
//
// A test file has a database, roles and servers of its own, so that files run side by side.

import { execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { startSimulator } from '../cliniko/cliniko.mjs';
import { issueToken } from '../../http/token.mjs';
import { setUpDatabase, startRestApi } from './stack.mjs';

const LEVELS = ['viewer', 'manager', 'admin'];
// Where that passes, something is wrong, and not slow.
const PATIENCE_MS = 600_000;
const POLL_MS = 20;

/** Runs statements in a session of its own and answers what they print. */
export async function psql(database, sql) {
  const args = ['-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', database, '-c', sql];
  const { stdout } = await promisify(execFile)('psql', args, { maxBuffer: 64 << 20 });
  return stdout.trim();
}

class Clinics {
  constructor(name) {
    this.name = `http_${name}_${process.pid}`;
    this.jwtSecret = randomBytes(32).toString('hex');
  }

  role(level) {
    return `${this.name}_${level}`;
  }

  sql(text) {
    return psql(this.name, text);
  }

  /** A token of a level, for an organization; without one it has no such claim. */
  token(level, org, options = {}) {
    return issueToken(this.jwtSecret, { role: this.role(level), org, ...options });
  }

  /** Tells the simulator. */
  async control(method, path, body) {
    const response = await fetch(`${this.simulator.url}/control/${path}`, {
      method,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    if (!response.ok) throw new Error(`${method} /control/${path}: ${await response.text()}`);
    return response.json();
  }

  key(org) {
    return `KEY-${org}-au1`;
  }

  /** Makes an account in the simulator, and connects an organization to it. */
  async addClinic(org, account) {
    await this.control('PUT', `accounts/${this.key(org)}`, account);
    await this.sql(`SELECT cliniko_connect('${org}', '${this.key(org)}')`);
  }

  /** Holds these requests for patients of a clinic, counted from 1. */
  hold(org, requests) {
    return this.control('PUT', `accounts/${this.key(org)}/gates`, requests);
  }

  awaitHeld(org, request) {
    return this.control('GET', `accounts/${this.key(org)}/gates/${request}/reached`);
  }

  letGo(org, request) {
    return this.control('POST', `accounts/${this.key(org)}/gates/${request}/open`);
  }

  /** Locks a table against writing, or in another mode, in a session that lasts until the function that it answers is called. */
  async lock(table, mode = 'EXCLUSIVE') {
    const session = spawn('psql', ['-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', this.name], { stdio: ['pipe', 'pipe', 'inherit'] });
    session.stdin.write(`BEGIN; LOCK TABLE ${table} IN ${mode} MODE; SELECT 'locked';\n`);
    await once(session.stdout, 'data');
    return async () => {
      if (session.exitCode !== null) return;
      session.stdin.end();
      await once(session, 'close');
    };
  }

  /** Waits until a query answers true. */
  async until(query) {
    for (const deadline = Date.now() + PATIENCE_MS; Date.now() < deadline; await delay(POLL_MS))
      if ((await this.sql(query)) === 't') return;
    throw new Error(`waited in vain: ${query}`);
  }

  untilDone(org) {
    return this.until(
      `SELECT NOT EXISTS (SELECT FROM sync_logs WHERE organization_id = '${org}' AND status = 'running')`);
  }

  async sync(org) {
    await this.sql(`SELECT cliniko_sync_all('${org}')`);
    await this.untilDone(org);
  }

  async open({ clinics, unlimited, panel }) {
    this.simulator = await startSimulator();
    await psql('postgres', `CREATE DATABASE ${this.name}`);
    await this.sql(`
      ALTER DATABASE ${this.name} SET clinisync.base_url = '${this.simulator.url}/v1';
      ALTER DATABASE ${this.name} SET clinisync.contact_email = 'tests@clinic.example';
      ALTER DATABASE ${this.name} SET clinisync.requests_per_minute = 0;
      -- a request that is held is held, however long it takes to look at everything
      ALTER DATABASE ${this.name} SET clinisync.request_timeout = '10min';
      -- so that a test knows which request is which
      ALTER DATABASE ${this.name} SET clinisync.requests_in_flight = 1;
      CREATE EXTENSION clinisync;`);
    for (const level of LEVELS)
      await this.sql(`
        CREATE ROLE ${this.role(level)};
        SELECT cliniko_grant('${this.role(level)}', '${level}');`);
    await setUpDatabase(this.name, this.role('authenticator'), LEVELS.map((level) => this.role(level)));
    for (const [org, account] of Object.entries(clinics)) await this.addClinic(org, account);
    this.api = await this.startAnotherApi({ unlimited, panel });
  }

  /** PostgREST and nginx once more, in front of the same database. */
  startAnotherApi(options = {}) {
    const { name: database, jwtSecret } = this;
    return startRestApi({ database, role: this.role('authenticator'), jwtSecret, ...options });
  }

  async close() {
    await this.api?.stop();
    await psql('postgres', `DROP DATABASE IF EXISTS ${this.name} WITH (FORCE)`);
    for (const role of ['authenticator', ...LEVELS]) await psql('postgres', `DROP ROLE IF EXISTS ${this.role(role)}`);
    this.simulator?.close();
  }
}

/**
 * Makes all that; close() ends it. clinics: the simulator's options of each account, by organization;
 * unlimited: without limits on how often a client may ask; panel: the admin panel's files.
 */
export async function openClinics(name, options) {
  const clinics = new Clinics(name);
  try {
    await clinics.open(options);
  } catch (error) {
    await clinics.close().catch(() => {});
    throw error;
  }
  return clinics;
}
