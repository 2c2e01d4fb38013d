// Everything that can go wrong with an answer, by the names of the control interface: answers that
// are replaced, pages that are spoiled, and connections that break. A fault must never change the
// patients themselves: the truth stays what it was. A spoiled answer is never compressed, but for the bomb.

import { gzipSync } from 'node:zlib';
import { ControlError } from './errors.mjs';
import { gzipRepeated } from './gzip.mjs';

const JSON_TYPE = 'application/json; charset=utf-8';
const MEGABYTE = 1 << 20;

function middle(list) {
  return list.length >> 1;
}

/** Spoils one record of a page, if it has any. */
function spoilOne(page, fields) {
  const at = middle(page.patients);
  if (page.patients.length > 0) page.patients[at] = { ...page.patients[at], ...fields(page.patients[at]) };
}

// Faults that alter a page and then serve it in good order.
const SPOIL = {
  wrong_total: (page, { by = 1 }) => void (page.total_entries += by),
  disorder: (page) => void page.patients.reverse(),
  duplicate: ({ patients }) => {
    const at = middle(patients);
    patients.splice(at, 0, ...patients.slice(at, at + 1));
  },
  bad_id: (page) => spoilOne(page, () => ({ id: 'abc' })),
  lone_surrogate: (page) => spoilOne(page, ({ first_name }) => ({ first_name: `${first_name}\ud800` })),
  nul: (page) => spoilOne(page, ({ first_name }) => ({ first_name: `${first_name}\u0000nul` })),
  no_patients: (page) => void delete page.patients,
  next_elsewhere: ({ links }, { host = '127.0.0.1:1' }) => {
    if (links.next) links.next = Object.assign(new URL(links.next), { host }).href;
  },
};

// Faults that answer something else than the page.
const REPLACE = {
  status: ({ status = 500, body = '', content_type, headers }) => {
    const text = typeof body === 'string' ? body : JSON.stringify(body);
    const type = content_type ?? (text.startsWith('<') ? 'text/html' : JSON_TYPE);
    return { status, headers: { 'Content-Type': type, ...headers }, body: Buffer.from(text) };
  },
  rate_limited: ({ seconds = 1, retry_after }) => {
    const headers = { 'Content-Type': JSON_TYPE, 'X-RateLimit-Reset': Math.ceil(Date.now() / 1000 + seconds) };
    if (retry_after !== undefined) headers['Retry-After'] = retry_after;
    return { status: 429, headers, body: Buffer.from('{"message":"Rate limit exceeded"}') };
  },
  html: () => ({
    status: 200,
    headers: { 'Content-Type': 'text/html' },
    body: Buffer.from('<!DOCTYPE html><html><body><h1>We are down for maintenance</h1></body></html>'),
  }),
  empty_object: () => ({ status: 200, headers: { 'Content-Type': JSON_TYPE }, body: Buffer.from('{}') }),
  redirect: () => ({ status: 301, headers: { Location: 'http://127.0.0.1:1/' }, body: Buffer.alloc(0) }),
};

// Faults that leave the page's meaning alone but not its bytes.
const REWRITE = {
  truncated_json: (json) => json.subarray(0, json.length >> 1),
  big: (json, { megabytes = 32 }) =>
    Buffer.concat([json.subarray(0, -1), Buffer.alloc(megabytes * MEGABYTE, ' '), json.subarray(-1)]),
  repeat_page: (json, _, previous) => previous?.() ?? json,
  // What ISO-8859-1 has not is escaped, so that the bytes are wrong as UTF-8 and nothing else.
  latin1: (json) => {
    const page = JSON.parse(json);
    spoilOne(page, ({ first_name }) => ({ first_name: `${first_name} Zoë` }));
    const escape = (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`;
    return Buffer.from(JSON.stringify(page).replace(/[^\u0000-\u00ff]/g, escape), 'latin1');
  },
};

const bombs = new Map();

/** Megabytes of blanks, compressed: once for each size, since that takes longer than a page may take. */
function bomb(megabytes) {
  if (!bombs.has(megabytes)) bombs.set(megabytes, gzipRepeated(Buffer.alloc(MEGABYTE, ' '), megabytes));
  return bombs.get(megabytes);
}

// Faults of how the page, or what is sent in its place, is encoded.
const ENCODE = {
  // As in a stream that several programs have written to, which gzip allows.
  gzip_members: (json) => ['gzip', Buffer.concat([json.subarray(0, 1), json.subarray(1)].map((part) => gzipSync(part)))],
  gzip_cut: (json) => ['gzip', gzipSync(json).subarray(0, -20)],
  gzip_garbage: (json) => ['gzip', Buffer.concat([gzipSync(json), Buffer.from('garbage')])],
  not_gzip: (json) => ['gzip', json],
  unknown_encoding: (json) => ['br', gzipSync(json)],
  gzip_bomb: (_, { megabytes = 64 }) => ['gzip', bomb(megabytes)],
};

function encode(fault, json) {
  const [encoding, body] = ENCODE[fault.kind](json, fault);
  return { status: 200, headers: { 'Content-Encoding': encoding }, body };
}

/** Sends the first half of an answer that announced all of it, then calls then(). */
function sendHalf(response, json, then) {
  response.writeHead(200, { 'Content-Type': JSON_TYPE, 'Content-Length': json.length });
  response.write(json.subarray(0, json.length >> 1), then);
}

// Faults of the connection itself; they write, or do not write, on their own.
const BREAK = {
  reset_before_headers: (response) => response.socket?.resetAndDestroy(),
  reset_mid_body: (response, json) => sendHalf(response, json, () => response.socket?.resetAndDestroy()),
  stall: (response, json) => sendHalf(response, json, () => {}),
};

const KINDS = new Set(['delay', ...[SPOIL, REPLACE, REWRITE, ENCODE, BREAK].flatMap(Object.keys)]);

/** Throws a ControlError for what is neither the number of a request, from 1, nor "every". */
export function checkRequestNumber(request) {
  if (request !== 'every' && !(Number.isInteger(request) && request > 0))
    throw new ControlError(`a request is a number from 1, or "every", not ${JSON.stringify(request)}`);
}

/** Throws a ControlError for a fault that the interface does not have. */
export function checkFault({ kind, request, path = '/patients' }) {
  if (!KINDS.has(kind)) throw new ControlError(`there is no fault ${kind}`);
  if (kind in SPOIL && path !== '/patients') throw new ControlError(`${kind} is a fault of pages of patients`);
  checkRequestNumber(request);
}

/**
 * What a fault makes of a right answer: {answer} to send instead, or {breakOff}, which writes to the
 * response by itself. `json` is the right body, `previous` makes that of the page before (null: there was none).
 */
export function applyFault(fault, json, previous) {
  const { kind } = fault;
  if (kind in REPLACE) return { answer: REPLACE[kind](fault) };
  if (kind in ENCODE) return { answer: encode(fault, json) };
  if (kind in BREAK) return { breakOff: (response) => BREAK[kind](response, json) };
  if (kind in REWRITE) return { answer: { status: 200, body: REWRITE[kind](json, fault, previous) } };
  const page = JSON.parse(json);
  SPOIL[kind](page, fault);
  return { answer: { status: 200, body: Buffer.from(JSON.stringify(page)) } };
}
