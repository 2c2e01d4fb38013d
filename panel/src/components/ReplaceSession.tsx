import { useLayoutEffect, useRef } from 'react';
import { nameOfBearer } from '../session';

interface ReplaceSessionProps {
  /** The token of the link. */
  offered: string;
  onAgree: () => void;
  onDecline: () => void;
}

/** Asks whoever is signed in before a link signs them in as somebody else. Escape keeps the session. */
export function ReplaceSession({ offered, onAgree, onDecline }: ReplaceSessionProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    if (!dialog.current?.open) dialog.current?.showModal();
  }, []);
  const name = nameOfBearer(offered);
  return (
    <dialog ref={dialog} className="card" aria-labelledby="replace-title" aria-describedby="replace-text" onClose={onDecline}>
      <h2 id="replace-title">{name === null ? 'Sign in with another token instead?' : `Sign in as ${name} instead?`}</h2>
      <p id="replace-text">
        You have followed a link that would end this session and begin another. If you did not expect that, keep this one.
      </p>
      <div className="actions">
        <button type="button" onClick={() => dialog.current?.close()}>
          Keep this session
        </button>
        <button type="button" className="primary" onClick={onAgree}>
          Sign in
        </button>
      </div>
    </dialog>
  );
}
