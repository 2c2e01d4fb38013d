// Requests to the REST API as a test makes them: with the path exactly as written, from an address of
// its own, so that the limits for each client stay as they are in production; and every answer is held
// against http/openapi.yaml.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { request } from 'node:http';

// The libraries are installed beside the configuration, not beside the tests.
const require = createRequire(new URL('../../http/package.json', import.meta.url));
const { parse } = require('yaml');
const { default: Ajv } = require('ajv/dist/2020.js');
const { default: addFormats } = require('ajv-formats');

export const description = parse(readFileSync(new URL('../../http/openapi.yaml', import.meta.url), 'utf8'));

const PREFIX = description.servers[0].url;
const DESCRIPTION_URI = 'openapi';
const ajv = new Ajv({ strict: false, allErrors: true, validateFormats: true });
addFormats(ajv);
ajv.addSchema(description, DESCRIPTION_URI);

const validators = new Map();

/** The part of the description that a JSON pointer names, with a reference followed. */
function resolve(part) {
  if (!part?.$ref) return part;
  return part.$ref.slice(2).split('/').reduce((inner, name) => inner[name], description);
}

function pointer(...names) {
  return names.map((name) => name.replaceAll('~', '~0').replaceAll('/', '~1')).join('/');
}

/** What the description says of a request, or null where it has no such path. */
function findOperation(method, path) {
  const inner = path.split('?')[0].slice(PREFIX.length);
  const template = Object.keys(description.paths).find((one) =>
    new RegExp(`^${one.replace(/\{[^}]*\}/g, '[^/]*')}$`).test(inner));
  if (!path.startsWith(PREFIX) || !template) return null;
  const item = description.paths[template];
  // A method that an endpoint does not have is answered as the endpoint's own methods say.
  const known = method.toLowerCase() in item ? method.toLowerCase() : 'post' in item ? 'post' : 'get';
  return { template, method: known, operation: item[known] };
}

function validatorOf({ template, method }, status, response) {
  const uri = response.$ref
    ? `${DESCRIPTION_URI}${response.$ref}/content/application~1json/schema`
    : `${DESCRIPTION_URI}#/${pointer('paths', template, method, 'responses', status, 'content', 'application/json', 'schema')}`;
  if (!validators.has(uri)) validators.set(uri, ajv.compile({ $ref: encodeURI(uri) }));
  return validators.get(uri);
}

/** Fails unless an answer is one that the description has for the request. */
function checkAnswer(method, path, answer) {
  const what = `${method} ${path.slice(0, 200)}: ${answer.status} ${answer.text.slice(0, 1000)}`;
  assert.equal(answer.headers['cache-control'], 'no-store', `not to be kept: ${what}`);
  if (method === 'OPTIONS' && answer.status === 204) return;
  const found = findOperation(method, path);
  if (!found) {
    // Only errors come from where there is nothing.
    assert.ok([400, 404, 405, 414].includes(answer.status), `undescribed: ${what}`);
    assert.ok(ajv.validate({ $ref: `${DESCRIPTION_URI}#/components/schemas/Error` }, answer.json), what);
    return;
  }
  const declared = found.operation.responses[answer.status];
  assert.ok(declared, `a status that openapi.yaml does not have: ${what}`);
  for (const [name, header] of Object.entries(resolve(declared).headers ?? {}))
    if (header.required) assert.ok(name.toLowerCase() in answer.headers, `the header ${name} is missing: ${what}`);
  if (method === 'HEAD') return;
  assert.match(answer.headers['content-type'] ?? '', /^application\/json/, what);
  const validate = validatorOf(found, String(answer.status), declared);
  assert.ok(validate(answer.json), `${what}\n${ajv.errorsText(validate.errors, { separator: '\n' })}`);
}

function send(url, method, path, { token, headers = {}, body, from, agent }) {
  return new Promise((resolve, reject) => {
    const { hostname, port } = new URL(url);
    const all = { ...(token === undefined ? {} : { authorization: `Bearer ${token}` }), ...headers };
    const outgoing = request({ hostname, port, method, path, headers: all, localAddress: from, agent }, (incoming) => {
      const chunks = [];
      incoming.on('data', (chunk) => chunks.push(chunk));
      incoming.on('error', reject);
      incoming.on('end', () =>
        resolve({
          status: incoming.statusCode,
          headers: incoming.headers,
          text: Buffer.concat(chunks).toString(),
        }));
    });
    outgoing.on('error', reject);
    outgoing.end(body);
  });
}

let clients = 0;

/** An address of the loopback network that no other client of this process has. */
export function newAddress() {
  const n = ++clients;
  return `127.${1 + ((n >> 16) & 63)}.${(n >> 8) & 255}.${n & 255}`;
}

/**
 * Sends a request to nginx and checks the answer against the description. Options: token, headers,
 * body, from (the client's address; each call has one of its own unless told). Answers { status,
 * headers, text, json }.
 */
export async function call(url, method, path, options = {}) {
  const answer = await send(url, method, path, { from: newAddress(), ...options });
  try {
    answer.json = JSON.parse(answer.text);
  } catch {
    answer.json = undefined;
  }
  if (!path.endsWith('/openapi.yaml')) checkAnswer(method, path, answer);
  return answer;
}

/** The same without any check, for what is not our API: PostgREST itself. */
export async function callUnchecked(url, method, path, options = {}) {
  const answer = await send(url, method, path, options);
  return { ...answer, json: answer.text.startsWith('{') || answer.text.startsWith('[') ? JSON.parse(answer.text) : undefined };
}
