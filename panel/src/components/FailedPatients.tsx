import type { Client } from '../api';
import { plural } from '../format';
import { useRuns } from '../runs';

const PATIENT = /^Patient ID (\d+): (.*)$/s;

/** Whom the newest run could not store, by their ids in Cliniko, and why. Nothing while there is nobody. */
export function FailedPatients({ client, organization }: { client: Client; organization: string }) {
  const { logs } = useRuns(client, organization);
  const newest = logs?.[0];
  if (newest === undefined || newest.records_failed === 0) return null;
  const errors = newest.metadata.errors.filter((error) => error !== newest.error_details);
  return (
    <section className="card wide" aria-labelledby="failed-title">
      <h2 id="failed-title">{plural(newest.records_failed, 'patient')} could not be stored</h2>
      <p className="quiet">
        They are in Cliniko by these numbers. Correct them there, and sync again: all others have been stored.
      </p>
      <ul className="failed" tabIndex={0} aria-label="Patients that could not be stored">
        {errors.map((error) => {
          const [, id, reason] = PATIENT.exec(error) ?? [];
          return (
            <li key={error}>
              {id === undefined ? (
                error
              ) : (
                <>
                  <span className="figure">{id}</span> {reason}
                </>
              )}
            </li>
          );
        })}
      </ul>
      {newest.records_failed > errors.length && (
        <p className="quiet">Only the first {errors.length} are listed.</p>
      )}
    </section>
  );
}
