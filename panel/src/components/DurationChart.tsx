import type { Log } from '../api';
import { formatMoment, formatSpan } from '../format';
import { describeKind } from '../steps';

const WIDTH = 320;
const HEIGHT = 72;
const GAP = 3;
// Always the same width, however many there are; the newest is at the right.
const SLOTS = 20;
const LEAST_HEIGHT = 2;

/** How long the last runs took, oldest first, as bars; a run that failed is hatched, not only coloured. */
export function DurationChart({ logs }: { logs: Log[] }) {
  const ended = logs.filter(({ metadata }) => metadata.duration_ms !== undefined).slice(0, SLOTS).reverse();
  if (ended.length < 2) return null;
  const longest = Math.max(...ended.map(({ metadata }) => metadata.duration_ms ?? 0), 1);
  const width = WIDTH / SLOTS;
  const first = SLOTS - ended.length;
  return (
    <figure className="chart">
      <figcaption>
        Duration of the last {ended.length} runs, up to {formatSpan(longest)}
      </figcaption>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label="The durations are in the table of runs">
        <defs>
          <pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
            <rect width="3" height="6" className="hatch" />
          </pattern>
        </defs>
        {ended.map((log, i) => {
          const height = Math.max(LEAST_HEIGHT, ((log.metadata.duration_ms ?? 0) / longest) * HEIGHT);
          return (
            <rect
              key={log.id}
              className={log.status}
              x={(first + i) * width + GAP / 2}
              y={HEIGHT - height}
              width={width - GAP}
              height={height}
            >
              <title>{`${formatMoment(log.started_at)}, ${describeKind(log)}: ${formatSpan(log.metadata.duration_ms ?? 0)}`}</title>
            </rect>
          );
        })}
      </svg>
    </figure>
  );
}
