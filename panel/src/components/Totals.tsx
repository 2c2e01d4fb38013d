import type { Client } from '../api';
import { formatAge, formatExact, formatNumber } from '../format';
import { useRuns } from '../runs';
import { useNow } from '../useNow';

const TICK_MS = 10_000;

/** The clinic's patients by number, and how old these numbers are. They change when a run ends. */
export function Totals({ client, organization }: { client: Client; organization: string }) {
  const { status } = useRuns(client, organization);
  const now = useNow(client.serverNow, TICK_MS);
  const counts = status?.patient_counts;
  const figures: [string, number | null | undefined][] = [
    ['In Cliniko', counts?.total_in_cliniko],
    ['Synced', counts?.synced_to_database],
    ['Active', counts?.active],
    ['Archived', counts?.archived],
    ['Deleted', counts?.deleted],
  ];
  return (
    <>
      <dl className="totals">
        {figures.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd className="figure">{value === null || value === undefined ? '–' : formatNumber(value)}</dd>
          </div>
        ))}
      </dl>
      {status && (
        <p className="quiet">
          {status.last_sync === null ? (
            'No sync has completed yet.'
          ) : (
            <>
              As of{' '}
              <time dateTime={status.last_sync} title={formatExact(status.last_sync)}>
                {formatAge(status.last_sync, now)}
              </time>
              , when the last sync completed.
            </>
          )}
        </p>
      )}
    </>
  );
}
