#!/usr/bin/env node
// A stand-in for Cliniko's API, for tests and demos: one process, any number of clinics with as many
// synthetic patients as asked, the documented rules enforced, faults on request. It listens on the
// loopback interface only and must never be given a real key or a real patient.

import { createServer } from 'node:http';
import { realpathSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Accounts } from './account.mjs';
import { serveApi } from './api.mjs';
import { serveControl } from './control.mjs';

const HELP = `Usage: node cliniko.mjs [--port N] [--until-stdin-closes]

Serves Cliniko's API under http://127.0.0.1:PORT/v1/ and its control path under /control/.
The first line on stdout is "listening on http://127.0.0.1:PORT".

  --port N               listen on this port (default: any free one)
  --until-stdin-closes   exit when standard input ends, so that a test that dies leaves no server
  --help                 show this

A first clinic, and its first patient:
  curl -X PUT http://127.0.0.1:PORT/control/accounts/demo-au1 -d '{"patients": 648, "strict": false}'
  curl -u demo-au1: 'http://127.0.0.1:PORT/v1/patients?per_page=1'

Account options (PUT /control/accounts/KEY): patients, archived, merged, latency_ms,
  ids (snowflake|old|mixed), absent (null|empty|missing|mixed), sort_by_id (honoured|rejected|ignored),
  rate_limit, rate_window_ms, role, account_id, account_name, seed, strict (false: header rules are not checked),
  gzip (false: never compress), warm (false: do not serialise every patient at creation),
  like (a key: begin with the patients of that account, instead of others).
  A page of 100 costs one or two milliseconds, two to four where its patients are not
  serialised yet, and a fraction of one, compressed, when the same URL is asked again.
`;

/** Starts a simulator on a loopback port (0: any free one): {url, close()}. */
export async function startSimulator(port = 0) {
  const accounts = new Accounts();
  const apiSockets = new WeakSet();
  const server = createServer((request, response) => {
    const serve = request.url.startsWith('/control/') ? serveControl : serveApi;
    if (serve === serveApi && !apiSockets.has(request.socket)) {
      apiSockets.add(request.socket);
      accounts.connections++;
    }
    serve(accounts, request, response).catch((error) => {
      process.stderr.write(`${request.method} ${request.url}: ${error.stack}\n`);
      response.destroy();
    });
  });
  // A connection that the server closes just as a client reuses it would be a fault nobody planned.
  server.keepAliveTimeout = 0;
  server.requestTimeout = 0;
  server.headersTimeout = 0;
  await new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, '127.0.0.1', 1024, resolve);
  });
  const close = () =>
    new Promise((resolve) => {
      server.close(resolve);
      server.closeAllConnections();
    });
  return { url: `http://127.0.0.1:${server.address().port}`, close };
}

async function main() {
  const { values } = parseArgs({
    options: {
      port: { type: 'string', default: '0' },
      'until-stdin-closes': { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(HELP);
    return;
  }
  const exit = () => process.exit(0);
  process.on('SIGTERM', exit);
  process.on('SIGINT', exit);
  if (values['until-stdin-closes']) process.stdin.on('end', exit).on('error', exit).resume();
  const { url } = await startSimulator(Number(values.port));
  process.stdout.write(`listening on ${url}\n`);
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) await main();
