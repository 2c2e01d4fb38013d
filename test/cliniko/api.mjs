// Answers Cliniko's REST API (/v1/…): checks each request against the documented rules, waits where
// the account's latency, gates and delays say so, and sends the answer or the fault planned for it.
// It must never change a patient except by a mutation that a test planned, and never make one
// account wait for another.

import { setTimeout as delay } from 'node:timers/promises';
import { Refusal } from './errors.mjs';
import { applyFault } from './faults.mjs';
import { splitKey } from './patients.mjs';
import { pageLinks, parseListQuery, parseNoQuery, parseSingleQuery } from './query.mjs';

const JSON_TYPE = 'application/json; charset=utf-8';
const USER_AGENT = /^\S.* \([^()\s@]+@[^()\s@]+\.[^()\s@]+\)$/;

/** Reads HTTP Basic credentials: {user, password}, or null where there are none. */
function credentials({ authorization = '' }) {
  const [, encoded] = /^Basic +([A-Za-z0-9+/=]+)$/i.exec(authorization) ?? [];
  if (encoded === undefined) return null;
  const text = Buffer.from(encoded, 'base64').toString();
  const colon = text.indexOf(':');
  return colon < 0 ? null : { user: text.slice(0, colon), password: text.slice(colon + 1) };
}

/** The documented rules for every request, whatever it asks for. */
function checkManners({ method, headers }) {
  if (!USER_AGENT.test(headers['user-agent'] ?? ''))
    throw new Refusal(400, 'Requires a user agent with a name and a contact email', 'user-agent');
  if (!(headers.accept ?? '').split(',').some((type) => type.trim().split(';')[0] === 'application/json'))
    throw new Refusal(406, 'Accept must be application/json', 'accept');
  if (method !== 'GET') throw new Refusal(405, 'Method not allowed', 'method');
}

/** GET /v1/patients: a page, of which the patients, known by their positions, are the beginning. */
function listPatients(account, query, url) {
  const { positions, total } = account.finder.find(query);
  const links = JSON.stringify(pageLinks(url, query, total));
  const makeBeginning = () => {
    const parts = positions.map((position) => account.register.json(position));
    if (parts.length > 0) parts.push(withoutComma(parts.pop()));
    return Buffer.concat([Buffer.from('{"patients":['), ...parts]);
  };
  return { key: positions.join(), makeBeginning, rest: Buffer.from(`],"total_entries":${total},"links":${links}}`) };
}

/** A body as JSON bytes. */
function whole({ makeBeginning, rest }) {
  return makeBeginning === undefined ? rest : Buffer.concat([makeBeginning(), rest]);
}

function withoutComma(json) {
  return json.subarray(0, -1);
}

function onePatient(account, id, { archivedToo }) {
  const { register } = account;
  const position = /^\d{1,19}$/.test(id) ? register.find(BigInt(id)) : -1;
  if (position < 0 || (register.isArchivedAt(position) && !archivedToo))
    throw new Refusal(404, 'Patient not found', null);
  return withoutComma(register.json(position));
}

function user({ options, register }) {
  return {
    id: '1000001',
    first_name: 'Key',
    last_name: 'Holder',
    email: 'key.holder@example.com',
    role: options.role,
    user_active: true,
    links: { self: `${register.api}/users/1000001` },
  };
}

function publicSettings({ key, options }) {
  const { bare } = splitKey(key);
  const name = options.account_name || `Clinic ${bare}`;
  return { account: { id: options.account_id, name, subdomain: bare.toLowerCase(), country_code: 'AU' } };
}

/**
 * Checks what is asked of a path below /v1 and returns a function that makes the body, of which the
 * beginning may be made later still; to be called later, because patients may change while a request
 * is held.
 */
function route(account, path, search, url) {
  const [, id] = /^\/patients\/([^/]+)$/.exec(path) ?? [];
  if (path === '/patients') {
    const query = parseListQuery(search, account.options.sort_by_id);
    return () => listPatients(account, query, url);
  }
  if (id !== undefined) {
    const query = parseSingleQuery(search);
    return () => ({ rest: onePatient(account, id, query) });
  }
  if (path !== '/user' && path !== '/settings/public') throw new Refusal(404, 'Not found', 'endpoint');
  parseNoQuery(search);
  if (account.options.role === 'scheduler') throw new Refusal(403, 'Forbidden', null);
  return () => ({ rest: Buffer.from(JSON.stringify(path === '/user' ? user(account) : publicSettings(account))) });
}

function messageAnswer(status, message, headers) {
  return { status, headers, body: Buffer.from(JSON.stringify({ message })) };
}

function send(response, { status, headers, body }) {
  response.writeHead(status, { 'Content-Type': JSON_TYPE, 'Content-Length': body.length, ...headers });
  response.end(body);
}

function sendGzipped(response, body) {
  send(response, { status: 200, headers: { 'Content-Encoding': 'gzip', Vary: 'Accept-Encoding' }, body });
}

function acceptsGzip({ headers }) {
  return /\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))/.test(headers['accept-encoding'] ?? '');
}

/** One request to the API, from its arrival to its answer. */
class Exchange {
  constructor(accounts, request, response) {
    const question = request.url.indexOf('?');
    const pathname = question < 0 ? request.url : request.url.slice(0, question);
    this.accounts = accounts;
    this.request = request;
    this.response = response;
    this.path = pathname.startsWith('/v1/') ? pathname.slice('/v1'.length) : '';
    this.search = question < 0 ? '' : request.url.slice(question + 1);
    this.url = `http://${request.headers.host}${pathname}`;
  }

  /** Notes a broken rule, in the account where there is one, and answers what Cliniko would. */
  #refuse(account, { status, message, rule }) {
    if (rule !== null) {
      const { method, url } = this.request;
      this.accounts.violate(account, { request: `${method} ${url}`, rule, detail: message });
    }
    return messageAnswer(status, message);
  }

  /** The account whose key was sent; or sends 401 and answers null. */
  #authenticate() {
    const given = credentials(this.request.headers);
    const account = given && this.accounts.byKey(given.user);
    if (account && given.password === '') return account;
    const rule = given === null ? 'authorization' : given.password !== '' ? 'password' : null;
    const answer = this.#refuse(account, new Refusal(401, 'Unauthorized', rule));
    try {
      checkManners(this.request);
    } catch (refusal) {
      this.#refuse(account, refusal);
    }
    this.accounts.unauthorized++;
    send(this.response, answer);
    return null;
  }

  /** Checks the request: {make} for its answer, or {answer} where it is refused. */
  #check(account) {
    try {
      if (account.options.strict) checkManners(this.request);
      return { make: route(account, this.path, this.search, this.url) };
    } catch (refusal) {
      if (!(refusal instanceof Refusal)) throw refusal;
      return { answer: this.#refuse(account, refusal) };
    }
  }

  async serve() {
    const { accounts, request, response } = this;
    request.resume();
    accounts.enter();
    response.on('close', () => accounts.leave());
    const account = this.#authenticate();
    if (account === null) return;

    const arrival = account.arrive(request.method, request.url, this.path);
    response.on('close', () => account.leave(arrival, response));
    const { make, answer } = this.#check(account);
    const resetsAt = account.exceedsRate();
    const { delay_ms, fault } = account.faultsFor(this.path, arrival.nth);
    const wait = account.options.latency_ms + delay_ms;
    if (wait > 0) await delay(wait);
    if (arrival.isList) {
      await account.passGate(arrival.nth);
      account.mutateOnRequest(arrival.nth);
    }
    if (response.destroyed) return;
    if (answer) send(response, answer);
    else if (resetsAt !== null) this.#sendRateLimited(resetsAt);
    else this.#answer(account, make, fault);
    if (arrival.isList && make) account.lastPage = () => whole(make());
  }

  #sendRateLimited(resetsAt) {
    const headers = { 'X-RateLimit-Reset': Math.ceil(resetsAt / 1000) };
    send(this.response, messageAnswer(429, 'Rate limit exceeded', headers));
  }

  #answer(account, make, fault) {
    const { request, response } = this;
    const gzip = account.options.gzip && acceptsGzip(request);
    try {
      const body = make();
      if (fault) this.#spoil(fault, whole(body), account.lastPage);
      else if (gzip) sendGzipped(response, account.gzipped(body));
      else send(response, { status: 200, body: whole(body) });
    } catch (refusal) {
      if (!(refusal instanceof Refusal)) throw refusal;
      send(response, this.#refuse(account, refusal));
    }
  }

  #spoil(fault, json, previous) {
    const { answer, breakOff } = applyFault(fault, json, previous);
    if (breakOff) breakOff(this.response);
    else send(this.response, answer);
  }
}

/** Serves one request to /v1. */
export async function serveApi(accounts, request, response) {
  await new Exchange(accounts, request, response).serve();
}
