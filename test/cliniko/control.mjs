// The control path (/control/…) by which tests make accounts, change patients, plan faults, hold
// requests at gates and read what was asked. It must never be counted as a request to the API.

import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { ControlError } from './errors.mjs';

// Longer than a slow machine needs: where a request is awaited in vain, the test is wrong, or the worker.
const GATE_PATIENCE_MS = 300_000;
const RECORDS_PER_CHUNK = 500;

async function readJson(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const text = Buffer.concat(chunks).toString();
  try {
    return text === '' ? {} : JSON.parse(text);
  } catch (error) {
    throw new ControlError(`the body is not JSON: ${error.message}`);
  }
}

function sendJson(response, status, value) {
  const body = JSON.stringify(value);
  response.writeHead(status, { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) });
  response.end(body);
}

async function create(accounts, key, options) {
  const account = accounts.create(key, options);
  if (account.options.warm) await account.register.warm();
  return account.summary();
}

async function createMany(accounts, { count = 1, prefix = 'clinic', suffix = '-au1', template = {} }) {
  const keys = Array.from({ length: count }, (_, n) => `${prefix}${n + 1}${suffix}`);
  for (const key of keys) await create(accounts, key, template);
  return { keys };
}

/** Sends all records in chunks, so that a large account does not stop the API while it is written. */
async function sendPatients(response, register) {
  response.writeHead(200, { 'Content-Type': 'application/json' });
  const gone = new AbortController();
  response.once('close', () => gone.abort());
  response.write('[');
  for (let from = 0; from < register.size && !response.destroyed; from += RECORDS_PER_CHUNK) {
    const to = Math.min(from + RECORDS_PER_CHUNK, register.size);
    const records = Array.from({ length: to - from }, (_, n) => register.json(from + n));
    const bytes = Buffer.concat([Buffer.from(from > 0 ? ',' : ''), ...records]);
    const isRoomLeft = response.write(bytes.subarray(0, -1));
    if (!isRoomLeft) await once(response, 'drain', { signal: gone.signal }).catch(() => {});
  }
  response.end(']');
}

/** Answers once the request is held, or 404 when that takes too long. */
async function waitForGate(gate, response) {
  const waiting = new AbortController();
  response.on('close', () => waiting.abort());
  const patience = delay(GATE_PATIENCE_MS, 'late', { signal: waiting.signal }).catch(() => 'left');
  if ((await Promise.race([gate.reached, patience])) === 'late')
    throw new ControlError('no request has reached this gate', 404);
  return { reached: true };
}

function openGates(gates) {
  for (const gate of gates) gate.open();
  return { opened: gates.length };
}

/** Does what is asked of one account and answers the JSON to send. */
async function control(account, method, rest, request, response) {
  const [what, number, verb] = rest;
  switch (`${method} ${[what, number && ':n', verb].filter(Boolean).join('/')}`) {
    case 'GET ':
      return account.summary();
    case 'GET ids':
      return account.register.ids;
    case 'POST reset':
      account.reset();
      return account.summary();
    case 'POST mutations':
      return account.mutate(await readJson(request));
    case 'PUT faults':
      account.setFaults(await readJson(request));
      return {};
    case 'PUT gates':
      account.setGates(await readJson(request));
      return {};
    case 'GET gates/:n/reached':
      return waitForGate(account.gates(number)[0], response);
    case 'POST gates/:n/open':
      return openGates(account.gates(number));
    default:
      throw new ControlError(`there is no ${method} ${request.url}`, 404);
  }
}

async function dispatch(accounts, request, response) {
  const [, , what, encodedKey, ...rest] = request.url.split('/');
  const { method } = request;
  if (encodedKey === undefined) {
    if (method === 'GET' && what === 'totals') return accounts.totals();
    if (method === 'POST' && what === 'accounts') return createMany(accounts, await readJson(request));
    if (method === 'POST' && what === 'reset') return accounts.reset() ?? accounts.totals();
  }
  if (what !== 'accounts' || !encodedKey) throw new ControlError(`there is no ${method} ${request.url}`, 404);
  const key = decodeURIComponent(encodedKey);
  if (method === 'PUT' && rest.length === 0) return create(accounts, key, await readJson(request));
  const account = accounts.byKey(key);
  if (account === undefined) throw new ControlError(`there is no account ${key}`, 404);
  if (method === 'GET' && rest[0] === 'patients') return sendPatients(response, account.register);
  return control(account, method, rest, request, response);
}

/** Serves one request to /control. */
export async function serveControl(accounts, request, response) {
  try {
    const answer = await dispatch(accounts, request, response);
    if (!response.headersSent) sendJson(response, 200, answer);
  } catch (error) {
    if (response.headersSent) throw error;
    sendJson(response, error.status ?? 500, { message: error.message });
  }
}
