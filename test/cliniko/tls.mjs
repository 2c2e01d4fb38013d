#!/usr/bin/env node
// Puts TLS in front of a simulator, as a test wants it: with any certificate, and with versions of
// TLS that nobody should speak any more. Hands on the bytes as they are, and must never answer by itself.

import { readFileSync, realpathSync } from 'node:fs';
import { connect } from 'node:net';
import { createServer } from 'node:tls';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const HELP = `Usage: node tls.mjs --target PORT --cert FILE --key FILE [--max-version V] [--until-stdin-closes]

Listens for TLS on the loopback interface and hands on what comes to 127.0.0.1:PORT.
The first line on stdout is "listening on https://localhost:PORT".

  --target PORT          where the simulator listens
  --cert FILE            the certificate to show, in PEM
  --key FILE             its private key, in PEM
  --max-version V        speak no later version than this: TLSv1, TLSv1.1, TLSv1.2, TLSv1.3 (default)
  --until-stdin-closes   exit when standard input ends, so that a test that dies leaves no server
  --help                 show this
`;

/** Starts TLS in front of a port, on a free one: {url, close()}. */
export async function startTls({ target, cert, key, maxVersion = 'TLSv1.3' }) {
  const sockets = new Set();
  const settings = { cert, key, minVersion: 'TLSv1', maxVersion, ciphers: 'DEFAULT@SECLEVEL=0' };
  const server = createServer(settings, (outside) => {
    const inside = connect(target, '127.0.0.1');
    for (const [one, other] of [[outside, inside], [inside, outside]]) {
      one.pipe(other);
      one.on('error', () => other.destroy());
      one.on('close', () => other.destroy());
    }
  });
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
  });
  server.on('tlsClientError', () => {});
  await new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', 1024, resolve);
  });
  const close = () =>
    new Promise((resolve) => {
      server.close(resolve);
      for (const socket of sockets) socket.destroy();
    });
  return { url: `https://localhost:${server.address().port}`, close };
}

async function main() {
  const { values } = parseArgs({
    options: {
      target: { type: 'string' },
      cert: { type: 'string' },
      key: { type: 'string' },
      'max-version': { type: 'string' },
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
  const { url } = await startTls({
    target: Number(values.target),
    cert: readFileSync(values.cert),
    key: readFileSync(values.key),
    maxVersion: values['max-version'],
  });
  process.stdout.write(`listening on ${url}\n`);
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) await main();
