// The time, as something that components render by.

import { useEffect, useState } from 'react';

/** What `read` says, read anew so often; while the tab is hidden browsers call it less often, or not at all. */
export function useNow(read: () => number, everyMs: number): number {
  const [now, setNow] = useState(read);
  useEffect(() => {
    setNow(read());
    const timer = setInterval(() => setNow(read()), everyMs);
    return () => clearInterval(timer);
  }, [read, everyMs]);
  return now;
}
