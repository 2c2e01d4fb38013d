#!/usr/bin/env node
// Issues a token for the REST API: a JWT that says which database role a request has, and which
// organization it may see. Meant for trying things out and for scripts; users of an application get
// theirs from whatever signs them in.

import { randomUUID } from 'node:crypto';
import { realpathSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { SignJWT } from 'jose';

const USAGE = `Usage: node http/token.mjs --secret-file FILE --role ROLE [--org ID] [options]

Prints a token for the REST API.

  --secret-file FILE  the secret that postgrest.conf names in jwt-secret (at least 32 characters)
  --role ROLE         the database role, which cliniko_grant() has made a viewer, manager or admin
  --org ID            the organization that a viewer or manager may see
  --claim PATH        where the token names it: as clinisync.org_claim has it (default: org_id)
  --sub NAME          whom it is for, which the panel shows
  --audience NAME     the service that it is for: jwt-aud in postgrest.conf (default: clinisync)
  --expires TIME      after what time it is no longer good: 15m, 1h, 24h (default: 1h)
  --help              show this`;
const SHORTEST_SECRET = 32;

/** A claim at a path such as app_metadata.org_id, or {https://clinic.example/org_id} where a name has dots. */
function nest(path, value) {
  const names = path.startsWith('{') ? path.slice(1, -1).split(',') : path.split('.');
  return names.reduceRight((inner, name) => ({ [name]: inner }), value);
}

/**
 * A signed token. secret: text; role: a database role; org: an organization's id, or none; claim: where it
 * goes, dots leading inwards; sub: whom the token is for, or none; audience: which service; expires: a span
 * such as '1h', or a Date. No two tokens are alike, since requests are counted by token.
 */
export async function issueToken(secret, { role, org, claim = 'org_id', sub, audience = 'clinisync', expires = '1h' }) {
  return new SignJWT({ role, sub, ...(org === undefined ? {} : nest(claim, org)) })
    .setProtectedHeader({ alg: 'HS256', typ: 'JWT' })
    .setJti(randomUUID())
    .setAudience(audience)
    .setIssuedAt()
    .setExpirationTime(expires)
    .sign(new TextEncoder().encode(secret));
}

function readArguments() {
  const text = { type: 'string' };
  const { values } = parseArgs({
    options: { 'secret-file': text, role: text, org: text, claim: text, audience: text, sub: text, expires: text, help: { type: 'boolean' } },
  });
  if (values.help) return { help: true };
  for (const name of ['secret-file', 'role']) {
    if (!values[name]) throw new Error(`--${name} is missing`);
  }
  return values;
}

async function main() {
  const { help, 'secret-file': secretFile, ...claims } = readArguments();
  if (help) return USAGE;
  const secret = (await readFile(secretFile, 'utf8')).trim();
  if (secret.length < SHORTEST_SECRET) {
    throw new Error(`the secret in ${secretFile} has fewer than ${SHORTEST_SECRET} characters`);
  }
  return issueToken(secret, claims);
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  try {
    console.log(await main());
  } catch (error) {
    console.error(`token: ${error.message}\nTry --help.`);
    process.exit(2);
  }
}
