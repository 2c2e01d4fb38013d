import type { Client, Log } from '../api';
import { formatCountdown, formatNumber, formatPercent, plural } from '../format';
import { describeStep, describeWait } from '../steps';
import { useNow } from '../useNow';

const TICK_MS = 1_000;
const ANNOUNCED_PERCENT = 10;

interface WaitProps {
  client: Client;
  log: Log;
  until: string;
}

/** Why the run waits, and for how long yet, by the server's clock. */
function Wait({ client, log, until }: WaitProps) {
  const left = Date.parse(until) - useNow(client.serverNow, TICK_MS);
  const reason = describeWait(log);
  return (
    <p className="wait">
      {reason.charAt(0).toUpperCase() + reason.slice(1)}. {left > 0 ? <>Goes on in <span className="figure">{formatCountdown(left)}</span>.</> : 'Goes on any moment.'}
    </p>
  );
}

/**
 * A run that is under way: its step, how far it is, how fast, and how long it may take yet; or why it
 * waits. log: the run, as sync-logs answers it.
 */
export function Progress({ client, log }: { client: Client; log: Log }) {
  const { metadata, records_processed: found, records_success: stored, records_failed: failed } = log;
  const percent = metadata.progress_percent;
  const done = stored + failed;
  const known = metadata.patients_found !== undefined;
  const step = describeStep(log).text;
  const announced = Math.floor(percent / ANNOUNCED_PERCENT) * ANNOUNCED_PERCENT;
  return (
    <div className="progress">
      <div className="progress-line">
        <p className="progress-step">{metadata.step === 'waiting' ? 'Waiting' : step}</p>
        <p className="figure progress-percent">{known ? formatPercent(percent) : ''}</p>
      </div>
      <div
        className={known ? 'bar' : 'bar unknown'}
        role="progressbar"
        aria-label="Progress of the sync"
        aria-valuemin={0}
        aria-valuemax={100}
        {...(known && { 'aria-valuenow': percent })}
        aria-valuetext={known ? `${formatPercent(percent)}, ${formatNumber(done)} of ${plural(found, 'patient')}` : step}
      >
        <div className="bar-fill" style={{ inlineSize: `${percent}%` }} />
      </div>
      {metadata.step === 'waiting' && metadata.waiting_until !== undefined && (
        <Wait client={client} log={log} until={metadata.waiting_until} />
      )}
      <dl className="facts">
        <div>
          <dt>Patients</dt>
          <dd className="figure">{known ? `${formatNumber(done)} / ${formatNumber(found)}` : '–'}</dd>
        </div>
        <div>
          <dt>A second</dt>
          <dd className="figure">{metadata.patients_per_second ? formatNumber(metadata.patients_per_second) : '–'}</dd>
        </div>
        <div>
          <dt>Remaining</dt>
          <dd>{metadata.estimated_remaining ?? '–'}</dd>
        </div>
        <div>
          <dt>Failed</dt>
          <dd className="figure">{formatNumber(failed)}</dd>
        </div>
      </dl>
      <p className="hidden" role="status">
        {step}
        {known && announced > 0 && `, ${announced} %`}
      </p>
    </div>
  );
}
