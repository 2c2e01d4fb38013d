import type { Client } from '../api';
import { formatClock, formatCountdown } from '../format';
import { useRuns, type Problem, type RunFeed } from '../runs';
import { useNow } from '../useNow';
import { Notice } from './Notice';

const TICK_MS = 1_000;
const readClock = () => Date.now();

function Retry({ problem, feed }: { problem: Problem; feed: RunFeed }) {
  const now = useNow(readClock, TICK_MS);
  if (problem.retryAt === null) return null;
  return (
    <>
      <span className="quiet figure">Next try in {formatCountdown(problem.retryAt - now)}</span>
      <button type="button" onClick={() => void feed.look()}>
        Try now
      </button>
    </>
  );
}

/** Says when what is shown is not what the database says now, and since when. */
export function ConnectionProblem({ client, organization }: { client: Client; organization: string }) {
  const { problem, seenAt, feed } = useRuns(client, organization);
  if (problem === null) return null;
  return (
    <Notice tone="bad" title={problem.message} actions={<Retry problem={problem} feed={feed} />}>
      {problem.hint && <p>{problem.hint}</p>}
      {seenAt !== null && <p className="quiet">What you see is how it stood at {formatClock(seenAt)}. A sync goes on without this page.</p>}
    </Notice>
  );
}
