import type { Client } from '../api';
import { formatClock, formatExact } from '../format';
import { useRuns } from '../runs';

/** What was seen of the clinic's runs, newest first, with the time; new lines are read out politely. */
export function LiveActivityLog({ client, organization }: { client: Client; organization: string }) {
  const { activity } = useRuns(client, organization);
  if (activity.length === 0) return <p className="quiet">Nothing has happened yet.</p>;
  return (
    <div className="activity" role="log" aria-label="Activity" tabIndex={0}>
      <ol>
        {activity.map(({ key, at, text, tone }) => (
          <li key={key} className={tone}>
            <time dateTime={new Date(at).toISOString()} title={formatExact(new Date(at).toISOString())}>
              {formatClock(at)}
            </time>
            <span>{text}</span>
          </li>
        ))}
      </ol>
    </div>
  );
}
