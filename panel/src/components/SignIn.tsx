import { useState, type FormEvent } from 'react';

const TOKEN = /^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/;

interface SignInProps {
  /** Whether there was a session before. */
  ended: boolean;
  onToken: (token: string) => void;
}

/**
 * For who comes without a token, or with one that has expired. Mostly the application that links to the
 * panel hands one over; a token of http/token.mjs can be entered here.
 */
export function SignIn({ ended, onToken }: SignInProps) {
  const [token, setToken] = useState('');
  const [wrong, setWrong] = useState(false);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    const trimmed = token.trim();
    if (TOKEN.test(trimmed)) onToken(trimmed);
    else setWrong(true);
  };
  return (
    <main className="sign-in">
      <section className="card" aria-labelledby="sign-in-title">
        <h1 id="sign-in-title">{ended ? 'Your session has ended' : 'Sign in'}</h1>
        <p>
          {ended ? 'A sync that is under way goes on. ' : ''}
          Come back through the link in your application, or enter an access token.
        </p>
        <form onSubmit={submit}>
          <label htmlFor="token">Access token</label>
          <input
            id="token"
            type="password"
            autoComplete="off"
            value={token}
            aria-invalid={wrong}
            {...(wrong && { 'aria-describedby': 'token-error' })}
            onChange={(event) => {
              setToken(event.target.value);
              setWrong(false);
            }}
          />
          {wrong && (
            <p id="token-error" className="field-error">
              This is no token: it has three parts with dots between them.
            </p>
          )}
          <div className="actions">
            <button type="submit" className="primary">
              Sign in
            </button>
          </div>
        </form>
      </section>
    </main>
  );
}
