import type { Client, Log } from '../api';
import { formatExact, formatMoment, formatNumber, formatSpan } from '../format';
import { useRuns } from '../runs';
import { describeKind } from '../steps';
import { DurationChart } from './DurationChart';

function nameOf({ status, metadata }: Log): string {
  if (status === 'running') return 'Running';
  if (status === 'completed') return 'Completed';
  return metadata.error_type === 'SYNC_CANCELLED' ? 'Cancelled' : 'Failed';
}

function Row({ log }: { log: Log }) {
  const { metadata } = log;
  const count = (value: number | undefined) => (value === undefined ? '–' : formatNumber(value));
  return (
    <tr>
      <th scope="row">
        <time dateTime={log.started_at} title={formatExact(log.started_at)}>
          {formatMoment(log.started_at)}
        </time>
      </th>
      <td>{describeKind(log)}</td>
      <td>
        <span className={`badge ${log.status}`}>{nameOf(log)}</span>
        {log.status === 'failed' && log.error_details && (
          <details>
            <summary>Why</summary>
            <p>{log.error_details}</p>
          </details>
        )}
      </td>
      <td className="figure">{metadata.duration_ms === undefined ? '–' : formatSpan(metadata.duration_ms)}</td>
      <td className="figure">{count(metadata.patients_found)}</td>
      <td className="figure">{count(metadata.inserted)}</td>
      <td className="figure">{count(metadata.updated)}</td>
      <td className="figure">{count(metadata.unchanged)}</td>
      <td className="figure">{formatNumber(log.records_failed)}</td>
    </tr>
  );
}

/** The clinic's last runs, newest first, with what became of them, and a chart of how long they took. */
export function RunHistory({ client, organization }: { client: Client; organization: string }) {
  const { logs } = useRuns(client, organization);
  if (logs === null) return <p className="quiet">Loading…</p>;
  if (logs.length === 0) return <p className="quiet">No sync has run yet.</p>;
  return (
    <>
      <DurationChart logs={logs} />
      <div className="scroller" role="region" aria-label="List of runs" tabIndex={0}>
        <table>
          <thead>
            <tr>
              <th scope="col">Started</th>
              <th scope="col">What</th>
              <th scope="col">Result</th>
              <th scope="col" className="figure">Duration</th>
              <th scope="col" className="figure">Found</th>
              <th scope="col" className="figure">New</th>
              <th scope="col" className="figure">Changed</th>
              <th scope="col" className="figure">Unchanged</th>
              <th scope="col" className="figure">Failed</th>
            </tr>
          </thead>
          <tbody>
            {logs.map((log) => (
              <Row key={log.id} log={log} />
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}
