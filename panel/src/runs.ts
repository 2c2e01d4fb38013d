// What the database says of one clinic's runs, kept up to date while somebody looks: the only place that
// polls. Whatever a component shows of a run comes from here, and so from the database; what was asked for
// and not yet seen there is "pending", nothing more.
//
//   while a run is under way, and the tab visible   a look every 2 s
//   otherwise, while the tab is visible             a look every 30 s: others start runs too
//   while the tab is hidden                         none
//   after an error                                  later and later, or when the server says
//   another tab starts or cancels a run, the network or the tab comes back: at once

import { useMemo, useSyncExternalStore } from 'react';
import { ApiError, Unreachable, type Client, type Log, type OrganizationStatus } from './api';
import { describeStep } from './steps';

const RUNNING_MS = 2_000;
const IDLE_MS = 30_000;
const LONGEST_BACKOFF_MS = 30_000;
const HISTORY = 20;
const MOST_ACTIVITY = 50;

export type SyncKind = 'all' | 'changes';

/** What keeps the panel from knowing more than it shows. */
export interface Problem {
  kind: 'offline' | 'signed-out' | 'forbidden' | 'unknown' | 'refused';
  message: string;
  hint: string | null;
  /** When the next look is due, in milliseconds since 1970; null where there will be none. */
  retryAt: number | null;
}

/** A line of the activity log: what was seen in the database, and when. */
export interface Activity {
  key: string;
  at: number;
  text: string;
  tone: 'plain' | 'good' | 'bad';
}

export interface RunsState {
  /** Newest first; null until the first look. */
  logs: Log[] | null;
  status: OrganizationStatus | null;
  /** When the database was last seen, in milliseconds since 1970. */
  seenAt: number | null;
  problem: Problem | null;
  /** What was asked for and has not been answered. */
  pending: 'start' | 'cancel' | null;
  /** Why the last thing that was asked for was refused. */
  refusal: Problem | null;
  activity: Activity[];
}

const NOTHING: RunsState = {
  logs: null,
  status: null,
  seenAt: null,
  problem: null,
  pending: null,
  refusal: null,
  activity: [],
};

/** Says what an error means for whoever looks. */
export function describeError(error: unknown): Problem {
  if (error instanceof Unreachable)
    return { kind: 'offline', message: 'No connection to the server.', hint: null, retryAt: null };
  if (!(error instanceof ApiError)) throw error;
  const { status, message, hint } = error;
  if (status === 401) return { kind: 'signed-out', message: 'Your session has ended.', hint: 'Sign in again.', retryAt: null };
  if (status === 403)
    return {
      kind: 'forbidden',
      message: 'Your access does not allow this.',
      hint: 'Ask an administrator for the level “manager”.',
      retryAt: null,
    };
  if (status === 404)
    return { kind: 'unknown', message: 'This clinic does not exist, or you may not see it.', hint: null, retryAt: null };
  const sentence = message.charAt(0).toUpperCase() + message.slice(1);
  return { kind: 'refused', message: /[.!?]$/.test(sentence) ? sentence : `${sentence}.`, hint, retryAt: null };
}

/** The newest run, if it is under way. */
export function runningOf({ logs }: RunsState): Log | null {
  const newest = logs?.[0];
  return newest?.status === 'running' ? newest : null;
}

export class RunFeed {
  #state = NOTHING;
  #listeners = new Set<() => void>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #looking = false;
  #lookAgain = false;
  #failures = 0;
  #channel: BroadcastChannel | null = null;

  constructor(
    private readonly client: Client,
    readonly organization: string,
  ) {}

  state = (): RunsState => this.#state;

  subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    if (this.#listeners.size === 1) this.#open();
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size === 0) this.#close();
    };
  };

  /** Starts a run; where one is under way already, it is that one that is shown. */
  start(kind: SyncKind): Promise<void> {
    return this.#ask('start', () =>
      kind === 'all' ? this.client.syncAll(this.organization) : this.client.syncChanges(this.organization),
    );
  }

  /** Ends the run that is under way. */
  cancel(): Promise<void> {
    return this.#ask('cancel', () => this.client.cancel(this.organization));
  }

  /** Forgets what was refused. */
  dismiss = (): void => this.#set({ refusal: null });

  /** Looks at once, whatever was planned. */
  look = async (): Promise<void> => {
    if (this.#looking) {
      this.#lookAgain = true;
      return;
    }
    this.#looking = true;
    clearTimeout(this.#timer);
    try {
      await this.#see();
      this.#failures = 0;
    } catch (error) {
      this.#failures++;
      this.#set({ problem: describeError(error) });
      if (error instanceof ApiError) this.#delay(error.retryAfterMs);
      else this.#delay(0);
    } finally {
      this.#looking = false;
    }
    if (this.#lookAgain) {
      this.#lookAgain = false;
      await this.look();
      return;
    }
    if (this.#state.problem === null) this.#plan(runningOf(this.#state) ? RUNNING_MS : IDLE_MS);
  };

  async #see(): Promise<void> {
    const { logs: known } = this.#state;
    if (known === null) {
      await this.#seeAll();
      return;
    }
    const { logs } = await this.client.syncLogs(this.organization, { limit: 1 });
    const [newest] = logs;
    const before = known[0];
    // A run that has ended changes the totals; of another one the history is not known.
    if (newest?.id !== before?.id || newest?.status !== before?.status) await this.#seeAll();
    else this.#show(newest === undefined ? [] : [newest, ...known.slice(1)], this.#state.status);
  }

  async #seeAll(): Promise<void> {
    // One after the other: totals that are older than the end of a run would stay for as long as no other begins.
    const { logs } = await this.client.syncLogs(this.organization, { limit: HISTORY });
    this.#show(logs, await this.client.status(this.organization));
  }

  #show(logs: Log[], status: OrganizationStatus | null): void {
    this.#set({ logs, status, seenAt: Date.now(), problem: null, activity: this.#note(logs) });
  }

  /** Adds what is news about the newest run; to begin with, how the runs before it ended. */
  #note(logs: Log[]): Activity[] {
    const lines = [...this.#state.activity];
    const told = new Set(lines.map(({ key }) => key));
    const shown = lines.length === 0 ? logs.slice(0, 5).reverse() : logs.slice(0, 1);
    for (const log of shown) {
      const { text, tone } = describeStep(log);
      const key = `${log.id} ${text}`;
      const at = log.completed_at === null ? this.client.serverNow() : Date.parse(log.completed_at);
      if (!told.has(key)) lines.unshift({ key, at, text, tone });
    }
    return lines.slice(0, MOST_ACTIVITY);
  }

  async #ask(pending: 'start' | 'cancel', request: () => Promise<unknown>): Promise<void> {
    this.#set({ pending, refusal: null });
    try {
      await request();
      this.#channel?.postMessage(this.organization);
      await this.look();
    } catch (error) {
      this.#set({ refusal: describeError(error) });
      await this.look();
    } finally {
      this.#set({ pending: null });
    }
  }

  /** After an error: when to look next. */
  #delay(retryAfterMs: number): void {
    const { problem } = this.#state;
    if (problem === null || problem.kind === 'signed-out') return;
    const backoff = Math.min(RUNNING_MS * 2 ** (this.#failures - 1), LONGEST_BACKOFF_MS);
    const pause = Math.max(backoff, retryAfterMs);
    this.#set({ problem: { ...problem, retryAt: Date.now() + pause } });
    this.#plan(pause);
  }

  #plan(pauseMs: number): void {
    clearTimeout(this.#timer);
    if (this.#listeners.size > 0 && document.visibilityState === 'visible')
      this.#timer = setTimeout(() => void this.look(), pauseMs);
  }

  #wake = (): void => {
    if (document.visibilityState !== 'visible') clearTimeout(this.#timer);
    else if (this.#state.problem?.kind !== 'signed-out') void this.look();
  };

  #open(): void {
    document.addEventListener('visibilitychange', this.#wake);
    window.addEventListener('online', this.#wake);
    window.addEventListener('pageshow', this.#wake);
    this.#channel = new BroadcastChannel('clinisync');
    this.#channel.onmessage = ({ data }) => {
      if (data === this.organization) this.#wake();
    };
    void this.look();
  }

  #close(): void {
    clearTimeout(this.#timer);
    document.removeEventListener('visibilitychange', this.#wake);
    window.removeEventListener('online', this.#wake);
    window.removeEventListener('pageshow', this.#wake);
    this.#channel?.close();
    this.#channel = null;
  }

  #set(change: Partial<RunsState>): void {
    this.#state = { ...this.#state, ...change };
    for (const listener of this.#listeners) listener();
  }
}

const feeds = new WeakMap<Client, Map<string, RunFeed>>();

/** The feed of a clinic: one for each client and clinic, whoever asks, so that nobody polls twice. */
function feedOf(client: Client, organization: string): RunFeed {
  const ofClient = feeds.get(client) ?? new Map<string, RunFeed>();
  const feed = ofClient.get(organization) ?? new RunFeed(client, organization);
  feeds.set(client, ofClient.set(organization, feed));
  return feed;
}

/** A clinic's runs, live, and what can be done about them. */
export function useRuns(client: Client, organization: string): RunsState & { feed: RunFeed } {
  const feed = useMemo(() => feedOf(client, organization), [client, organization]);
  const state = useSyncExternalStore(feed.subscribe, feed.state);
  return useMemo(() => ({ ...state, feed }), [state, feed]);
}
