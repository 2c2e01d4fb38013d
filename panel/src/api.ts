// The REST API as functions. Paths, parameters and answers are typed by http/openapi.yaml (openapi.d.ts is
// made from it), so a client that does not fit the description does not compile.

import type { components, paths } from './openapi';

type Schemas = components['schemas'];
export type Log = Schemas['Log'];
export type Metadata = Schemas['Metadata'];
export type OrganizationStatus = Schemas['OrganizationStatus'];
export type Organization = Schemas['Organization'];
export type Patient = Schemas['Patient'];
export type Connection = Schemas['Connected'] | Schemas['NotConnected'];

type Method = 'get' | 'post';
type PathsOf<M extends Method> = { [P in keyof paths]: paths[P][M] extends undefined ? never : P }[keyof paths];
type Json<T> = T extends { responses: { 200: { content: { 'application/json': infer Body } } } } ? Body : never;
type Answer<P extends keyof paths, M extends Method> = Json<NonNullable<paths[P][M]>>;
type Query<P extends keyof paths, M extends Method> =
  NonNullable<paths[P][M]> extends { parameters: { query?: infer Parameters } } ? NonNullable<Parameters> : never;

const READ_TIMEOUT_MS = 15_000;
// Longer than the server waits for Cliniko.
const TEST_TIMEOUT_MS = 65_000;

/** An answer other than 200. `details` is the code to switch on, `hint` says what to do next. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly details: string | null,
    readonly hint: string | null,
    /** How long to stay away, in milliseconds; 0 where the server does not say. */
    readonly retryAfterMs: number,
  ) {
    super(message);
    this.name = 'ApiError';
  }
}

/** No answer at all: no network, no server, or too late. */
export class Unreachable extends Error {
  constructor(cause: unknown) {
    super('the server cannot be reached', { cause });
    this.name = 'Unreachable';
  }
}

export interface ClientOptions {
  /** Where the API is, without a slash at the end. */
  baseUrl?: string;
  /** The token to send, or null for none; asked for each request, since tokens are renewed. */
  token: () => string | null;
}

interface CallOptions<P extends keyof paths, M extends Method> {
  organization?: string;
  query?: Query<P, M>;
  timeoutMs?: number;
}

async function refusal(response: Response): Promise<ApiError> {
  const error: Partial<Schemas['Error']> = await response.json().catch(() => ({}));
  const retryAfter = Number(response.headers.get('Retry-After') ?? 0);
  return new ApiError(
    response.status,
    error.message ?? `the server answered ${response.status}`,
    error.details ?? null,
    error.hint ?? null,
    Number.isFinite(retryAfter) ? retryAfter * 1000 : 0,
  );
}

/**
 * A client of the REST API. Its functions answer what openapi.yaml says, and throw an ApiError or
 * Unreachable.
 */
export function createClient({ baseUrl = '/api/v1', token }: ClientOptions) {
  let serverAheadMs = 0;

  async function call<M extends Method, P extends PathsOf<M>>(
    method: M,
    path: P,
    { organization, query, timeoutMs = READ_TIMEOUT_MS }: CallOptions<P, M> = {},
  ): Promise<Answer<P, M>> {
    const filled = path.replace('{organization}', encodeURIComponent(organization ?? ''));
    const parameters = Object.entries(query ?? {}).filter(([, value]) => value !== undefined && value !== '');
    const search = parameters.map(([name, value]) => `${name}=${encodeURIComponent(String(value))}`).join('&');
    const bearer = token();
    let response: Response;
    try {
      response = await fetch(`${baseUrl}${filled}${search && `?${search}`}`, {
        method: method.toUpperCase(),
        headers: bearer === null ? {} : { Authorization: `Bearer ${bearer}` },
        signal: AbortSignal.timeout(timeoutMs),
        cache: 'no-store',
        credentials: 'omit',
      });
    } catch (cause) {
      throw new Unreachable(cause);
    }
    const date = Date.parse(response.headers.get('Date') ?? '');
    if (!Number.isNaN(date)) serverAheadMs = date - Date.now();
    if (!response.ok) throw await refusal(response);
    try {
      return (await response.json()) as Answer<P, M>;
    } catch (cause) {
      throw new Unreachable(cause);
    }
  }

  return {
    /** The clinics that the token may see. */
    listOrganizations: () => call('get', '/cliniko/organizations'),
    /** Asks Cliniko whether the key works; takes as long as Cliniko does. */
    testConnection: (organization: string) =>
      call('get', '/cliniko/test-connection/{organization}', { organization, timeoutMs: TEST_TIMEOUT_MS }),
    /** Starts a sync of all patients, or answers with the run that is under way. */
    syncAll: (organization: string) => call('post', '/cliniko/sync-all/{organization}', { organization }),
    /** Likewise, of what has changed since the last completed run. */
    syncChanges: (organization: string) => call('post', '/cliniko/sync-changes/{organization}', { organization }),
    /** Ends the run that is under way; what it stored stays. */
    cancel: (organization: string) => call('post', '/cliniko/cancel/{organization}', { organization }),
    /** The runs, newest first. */
    syncLogs: (organization: string, query: Query<'/cliniko/sync-logs/{organization}', 'get'>) =>
      call('get', '/cliniko/sync-logs/{organization}', { organization, query }),
    /** The newest run, the last completed one, and the patients by number. */
    status: (organization: string) => call('get', '/cliniko/status/{organization}', { organization }),
    /** A page of patients who are neither archived nor deleted. */
    activePatients: (organization: string, query: Query<'/cliniko/active-patients/{organization}', 'get'>) =>
      call('get', '/cliniko/active-patients/{organization}', { organization, query }),
    /** What time it is for the server, in milliseconds since 1970, give or take a second. */
    serverNow: () => Date.now() + serverAheadMs,
  };
}

export type Client = ReturnType<typeof createClient>;
