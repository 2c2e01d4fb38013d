// One Cliniko account as the simulator keeps it: its settings, its patients, what was asked of it,
// which rules were broken, and what the tests planned for its requests (faults, gates, mutations).
// It must never write to a socket: answering is api.mjs's job.

import { gzipSync } from 'node:zlib';
import { ControlError } from './errors.mjs';
import { checkFault, checkRequestNumber } from './faults.mjs';
import { Gzipper } from './gzip.mjs';
import { splitKey } from './patients.mjs';
import { Finder } from './query.mjs';
import { checkMutation, Register } from './register.mjs';

const LOG_LENGTH = 1000;
const GZIPPED_BYTES = 64 << 20;

const DEFAULTS = {
  patients: 648,
  archived: 0,
  merged: 0,
  latency_ms: 0,
  ids: 'snowflake',
  absent: 'null',
  sort_by_id: 'honoured',
  rate_limit: 0,
  rate_window_ms: 60_000,
  role: 'administrator',
  account_id: '2000001',
  account_name: '', // after the key
  seed: 1,
  strict: true,
  gzip: true,
  warm: true,
};

const CHOICES = {
  ids: ['snowflake', 'old', 'mixed'],
  absent: ['null', 'empty', 'missing', 'mixed'],
  sort_by_id: ['honoured', 'rejected', 'ignored'],
};

function checkOptions(options) {
  for (const [name, value] of Object.entries(options)) {
    if (!Object.hasOwn(DEFAULTS, name)) throw new ControlError(`there is no option ${name}`);
    const expected = DEFAULTS[name];
    const valid = Object.hasOwn(CHOICES, name)
      ? CHOICES[name].includes(value)
      : typeof expected === 'number'
        ? Number.isInteger(value) && value >= 0
        : typeof value === typeof expected || (name === 'role' && value === null);
    if (!valid) throw new ControlError(`${name} cannot be ${JSON.stringify(value)}`);
  }
  const { archived, merged } = { ...DEFAULTS, ...options };
  if (merged > archived) throw new ControlError('merged patients are archived: merged exceeds archived');
}

/** A place at which one request waits until it is let go. */
class Gate {
  constructor() {
    this.reached = new Promise((resolve) => (this.reach = resolve));
    this.opened = new Promise((resolve) => (this.open = resolve));
  }

  async pass() {
    this.reach();
    await this.opened;
  }
}

/** One account: its settings and patients, and the record of what was asked of it. */
export class Account {
  #window = { startedAt: -Infinity, requests: 0 };
  #faults = [];
  #gates = new Map();
  #plannedMutations = [];
  #requestsByPath = new Map();
  #gzipper = new Gzipper(GZIPPED_BYTES);
  #gzippedVersion = 0;

  inFlight = 0;
  maxInFlight = 0;
  requests = 0;
  rateLimited = 0;
  violations = [];
  log = [];
  /** Makes the JSON of the list page answered last, for the fault that repeats it. */
  lastPage = null;

  constructor(key, options, twin) {
    checkOptions(options);
    this.key = key;
    this.options = { ...DEFAULTS, ...options };
    const { sort_by_id } = this.options;
    this.register =
      twin?.register.copy() ?? new Register(key, { ...this.options, importedDates: sort_by_id === 'ignored' });
    this.finder = new Finder(this.register);
  }

  /** Counts and logs a request that has arrived; `path` is below /v1. */
  arrive(method, url, path) {
    this.requests++;
    this.inFlight++;
    this.maxInFlight = Math.max(this.maxInFlight, this.inFlight);
    const entry = { n: this.requests, method, path: url, status: null, at_ms: Date.now() };
    const nth = method === 'GET' ? (this.#requestsByPath.get(path) ?? 0) + 1 : null;
    if (nth !== null) this.#requestsByPath.set(path, nth);
    const isList = path === '/patients' && nth !== null;
    if (isList) entry.patients_request = nth;
    this.log.push(entry);
    if (this.log.length > LOG_LENGTH) this.log.shift();
    return { entry, nth, isList };
  }

  /** Notes that a request is over: answered, or ended without one (status 0). */
  leave({ entry }, { headersSent, statusCode }) {
    entry.status = headersSent ? statusCode : 0;
    if (entry.status === 429) this.rateLimited++;
    this.inFlight--;
  }

  /** When the rate limit will reset (unix milliseconds) if this request exceeds it, else null. */
  exceedsRate() {
    const { rate_limit, rate_window_ms } = this.options;
    if (rate_limit === 0) return null;
    const now = Date.now();
    if (now >= this.#window.startedAt + rate_window_ms) this.#window = { startedAt: now, requests: 0 };
    if (++this.#window.requests <= rate_limit) return null;
    return this.#window.startedAt + rate_window_ms;
  }

  /** Waits at the gate of the nth GET /v1/patients, if there is one. */
  async passGate(nth) {
    await this.#gates.get(nth)?.pass();
  }

  /** Does the mutations that were planned for the nth GET /v1/patients. */
  mutateOnRequest(nth) {
    for (const { request, ...mutation } of this.#plannedMutations)
      if (request === 'every' || request === nth) this.register.mutate(mutation);
  }

  /** The faults planned for the nth request of a path: the sum of delays, and the first other one. */
  faultsFor(path, nth) {
    const due = this.#faults.filter(
      ({ path: of = '/patients', request, times = 1 }) =>
        of === path && (request === 'every' || (nth >= request && nth < request + times)),
    );
    const delay_ms = due.reduce((sum, { kind, ms = 0 }) => (kind === 'delay' ? sum + ms : sum), 0);
    return { delay_ms, fault: due.find(({ kind }) => kind !== 'delay') };
  }

  /** Applies a mutation at once, except for what it plans for requests to come. */
  mutate({ generate_on_request, ...mutation }) {
    const planned = generate_on_request === undefined ? [] : [generate_on_request].flat();
    for (const { request, ...later } of planned) {
      checkRequestNumber(request);
      checkMutation(later);
    }
    checkMutation(mutation);
    if (generate_on_request !== undefined) this.#plannedMutations = planned;
    return this.register.mutate(mutation);
  }

  /** Replaces the faults. */
  setFaults(faults) {
    if (!Array.isArray(faults)) throw new ControlError('faults are a list');
    for (const fault of faults) checkFault(fault);
    this.#faults = faults;
  }

  /** Replaces the gates; requests held at one that is not there any more go on. */
  setGates(numbers) {
    if (!Array.isArray(numbers) || !numbers.every(Number.isInteger))
      throw new ControlError('gates are a list of numbers');
    const before = this.#gates;
    this.#gates = new Map(numbers.map((n) => [n, before.get(n) ?? new Gate()]));
    for (const [n, gate] of before) if (!this.#gates.has(n)) gate.open();
  }

  /** The gates with this number, or all of them. */
  gates(which) {
    if (which === 'all') return [...this.#gates.values()];
    const gate = this.#gates.get(Number(which));
    if (gate === undefined) throw new ControlError(`no gate is set for request ${which}`, 404);
    return [gate];
  }

  /** A body, gzipped; its beginning is kept compressed while no patient changes. */
  gzipped({ key, makeBeginning, rest }) {
    if (this.#gzippedVersion !== this.register.version) this.#gzipper.forget();
    this.#gzippedVersion = this.register.version;
    return makeBeginning === undefined ? gzipSync(rest) : this.#gzipper.gzip(key, makeBeginning, rest);
  }

  /** Zeroes counters, log, violations and plans, and lets go of whatever is held. */
  reset() {
    this.setGates([]);
    this.#faults = [];
    this.#plannedMutations = [];
    this.#requestsByPath.clear();
    this.#window = { startedAt: -Infinity, requests: 0 };
    this.requests = 0;
    this.rateLimited = 0;
    this.maxInFlight = this.inFlight;
    this.violations = [];
    this.log = [];
    this.lastPage = null;
  }

  /** What GET /control/accounts/KEY answers. */
  summary() {
    const { key, register, requests, inFlight, maxInFlight, rateLimited, violations, log } = this;
    return {
      key,
      patients: register.size,
      active: register.active,
      archived: register.size - register.active,
      requests,
      patients_requests: this.#requestsByPath.get('/patients') ?? 0,
      in_flight: inFlight,
      max_in_flight: maxInFlight,
      rate_limited: rateLimited,
      violations,
      log,
    };
  }
}

/** All accounts, by key, and the counts over them. */
export class Accounts {
  #byKey = new Map();
  #byBareKey = new Map();
  #details = [];
  #strayViolations = [];
  #violations = 0;
  #requests = 0;
  #inFlight = 0;
  #maxInFlight = 0;

  unauthorized = 0;
  connections = 0;

  /** Creates the account of this key, or replaces it; `like`: the key of one whose patients it begins with. */
  create(key, { like, ...options }) {
    const twin = this.#byKey.get(like);
    if (like !== undefined && !twin) throw new ControlError(`there is no account ${like}`);
    const account = new Account(key, options, twin);
    this.#byKey.get(key)?.reset();
    this.#byKey.set(key, account);
    this.#byBareKey.set(splitKey(key).bare, account);
    return account;
  }

  /** The account of a key as an API client sends it, with or without its shard; undefined if there is none. */
  byKey(key) {
    return this.#byKey.get(key) ?? this.#byBareKey.get(key);
  }

  /** Notes a request that has arrived. */
  enter() {
    this.#requests++;
    this.#inFlight++;
    this.#maxInFlight = Math.max(this.#maxInFlight, this.#inFlight);
  }

  /** Notes that a request is over. */
  leave() {
    this.#inFlight--;
  }

  /** Notes a broken rule, with the account's where the request could be tied to one. */
  violate(account, violation) {
    if (!account) this.#strayViolations.push(violation);
    else {
      account.violations.push(violation);
      this.#violations++;
      this.#details.push({ account: account.key, ...violation });
    }
  }

  /** Zeroes the totals and resets every account. */
  reset() {
    for (const account of this.#byKey.values()) account.reset();
    this.#details = [];
    this.#strayViolations = [];
    this.#violations = 0;
    this.#requests = 0;
    this.#maxInFlight = this.#inFlight;
    this.unauthorized = 0;
    this.connections = 0;
  }

  /** What GET /control/totals answers: since the start, whatever accounts were reset or replaced. */
  totals() {
    return {
      accounts: this.#byKey.size,
      requests: this.#requests,
      violations: this.#violations,
      details: this.#details,
      unauthorized: this.unauthorized,
      stray_violations: this.#strayViolations,
      in_flight: this.#inFlight,
      max_in_flight: this.#maxInFlight,
      connections: this.connections,
    };
  }
}
