import { useEffect, useRef } from 'react';
import type { Client, Log } from '../api';
import { plural } from '../format';
import { runningOf, useRuns, type RunFeed, type RunsState } from '../runs';
import { describeStep } from '../steps';
import { Notice } from './Notice';
import { Progress } from './Progress';

interface SyncButtonProps {
  client: Client;
  organization: string;
  /** Called when a run that was seen running has ended, with the run. */
  onSyncComplete?: (run: Log) => void;
}

/** Tells when the run that was seen running is not any more. */
function useCompletion(newest: Log | undefined, onSyncComplete: SyncButtonProps['onSyncComplete']): void {
  const running = useRef<number | null>(null);
  useEffect(() => {
    if (newest === undefined) return;
    if (newest.status === 'running') running.current = newest.id;
    else if (running.current === newest.id) {
      running.current = null;
      onSyncComplete?.(newest);
    }
  }, [newest, onSyncComplete]);
}

/** How the newest run ended. */
function Result({ run }: { run: Log }) {
  const { metadata } = run;
  const cancelled = metadata.error_type === 'SYNC_CANCELLED';
  if (run.status === 'failed' && !cancelled)
    return (
      <Notice tone="bad" title="The last sync failed">
        <p>{run.error_details ?? metadata.errors[0]}</p>
        <p className="quiet">
          {metadata.retry_recommended ? 'Trying again may help.' : 'Trying again does not help before this is settled.'}{' '}
          {run.records_success > 0 && `${plural(run.records_success, 'patient')} had been stored; they stay.`}
        </p>
      </Notice>
    );
  if (run.records_failed > 0)
    return (
      <Notice tone="bad" title={describeStep(run).text}>
        <p className="quiet">Which patients, and why, is listed below.</p>
      </Notice>
    );
  return <Notice tone={cancelled ? 'plain' : 'good'} title={describeStep(run).text} />;
}

function Buttons({ state, feed }: { state: RunsState; feed: RunFeed }) {
  const newest = state.logs?.[0];
  const failed = newest?.status === 'failed';
  const starting = state.pending === 'start';
  const first = newest === undefined ? 'Sync all patients' : failed ? 'Retry with all patients' : 'Sync all patients again';
  return (
    <div className="actions">
      <button type="button" className="primary" disabled={starting} onClick={() => void feed.start('all')}>
        {starting ? 'Starting…' : first}
      </button>
      <button type="button" disabled={starting} onClick={() => void feed.start('changes')}>
        Sync changes only
      </button>
    </div>
  );
}

/**
 * Starts a sync, shows how far it is, cancels it, and says how it ended; whoever started it. Shows what
 * the database says and nothing else.
 */
export function SyncButton({ client, organization, onSyncComplete }: SyncButtonProps) {
  const { feed, ...state } = useRuns(client, organization);
  const running = runningOf(state);
  const newest = state.logs?.[0];
  useCompletion(newest, onSyncComplete);
  if (state.logs === null) return <p className="quiet">Loading…</p>;
  return (
    <div className="sync">
      {running ? (
        <>
          <Progress client={client} log={running} />
          <div className="actions">
            <button type="button" disabled={state.pending === 'cancel'} onClick={() => void feed.cancel()}>
              {state.pending === 'cancel' ? 'Cancelling…' : 'Cancel'}
            </button>
          </div>
        </>
      ) : (
        <>
          {newest ? <Result run={newest} /> : <p className="quiet">No sync has run yet.</p>}
          <Buttons state={state} feed={feed} />
        </>
      )}
      {state.refusal && (
        <Notice
          tone="bad"
          title={state.refusal.message}
          actions={
            <button type="button" onClick={feed.dismiss}>
              Close
            </button>
          }
        >
          {state.refusal.hint && <p>{state.refusal.hint}</p>}
        </Notice>
      )}
    </div>
  );
}
