/*
 * The database's side of the REST API: the role that PostgREST logs in as, the bounds of what a caller
 * may use, and the function that looks at each token. As a superuser, in the database that clinisync is
 * in: \i setup.sql (README.md). All of it or nothing; once in each database.
 *
 * \set login NAME before that, for another role than "authenticator".
 */
\if :{?login}
\else
	\set login authenticator
\endif

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;

/* db-pool of postgrest.conf, a listener for NOTIFY, and what a restart has not ended yet */
SELECT format('CREATE ROLE %I', :'login') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'login') \gexec
ALTER ROLE :"login" LOGIN NOINHERIT CONNECTION LIMIT 25;

/*
 * Of every caller, since PostgREST calls the functions in this role's sessions. What waits for another's
 * lock gives up long before what computes; nginx waits longer than either (proxy_read_timeout).
 */
ALTER ROLE :"login" SET statement_timeout = '15s';
ALTER ROLE :"login" SET lock_timeout = '5s';
ALTER ROLE :"login" SET idle_in_transaction_session_timeout = '10s';

/* a statement's parameters are what was searched for, the token, and its claims: the log has none of them */
ALTER ROLE :"login" SET log_parameter_max_length = 0;
ALTER ROLE :"login" SET log_parameter_max_length_on_error = 0;

/* not among db-schemas: what is in here is no endpoint */
CREATE SCHEMA clinisync_http;

CREATE FUNCTION clinisync_http.pre_request()
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET clinisync_http.max_token_lifetime = '24 hours'
SET clinisync_http.test_timeout = '55s'
AS $$
DECLARE
	headers constant jsonb := nullif(current_setting('request.headers', true), '');
	claims constant jsonb := nullif(current_setting('request.jwt.claims', true), '');
	lifetime constant interval := current_setting('clinisync_http.max_token_lifetime');
	refusal record;
BEGIN
	/* whoever brings no token has the anonymous role, where there is one */
	IF headers ? 'authorization' THEN
		SELECT rule.* INTO refusal
		FROM (SELECT (claims ->> 'exp')::numeric,
				coalesce((claims ->> 'iat')::numeric, extract(epoch FROM now()))) AS token (expires, issued),
			LATERAL (VALUES
				(expires IS NOT NULL, 'TOKEN_WITHOUT_EXPIRY',
				 'the token never expires',
				 'Issue tokens with the claim "exp".'),
				(expires - issued <= extract(epoch FROM lifetime), 'TOKEN_TOO_LONG_LIVED',
				 'the token is good for too long',
				 format('Issue tokens for at most %s, or raise clinisync_http.max_token_lifetime.', lifetime)),
				(claims ? 'aud', 'TOKEN_WITHOUT_AUDIENCE',
				 'the token does not say which service it is for',
				 'Issue tokens with the claim "aud", as jwt-aud in postgrest.conf has it.')
			) AS rule (is_kept, code, message, hint)
		WHERE NOT is_kept
		LIMIT 1;
		IF FOUND THEN
			RAISE EXCEPTION USING
				ERRCODE = 'PT401',
				MESSAGE = refusal.message,
				DETAIL = refusal.code,
				HINT = refusal.hint;
		END IF;
	END IF;

	/* the one request that waits for Cliniko, and not for the database */
	IF current_setting('request.path', true) = '/rpc/cliniko_test_connection' THEN
		PERFORM set_config('statement_timeout', current_setting('clinisync_http.test_timeout'), true);
	END IF;
END
$$;
REVOKE ALL ON FUNCTION clinisync_http.pre_request() FROM PUBLIC;
COMMENT ON FUNCTION clinisync_http.pre_request() IS
'What PostgREST calls before each request, as the caller''s role (db-pre-request). Refuses a token without exp or aud, and one that is good for longer than clinisync_http.max_token_lifetime, counted from iat, or from now without one: PT401 TOKEN_WITHOUT_EXPIRY, TOKEN_WITHOUT_AUDIENCE, TOKEN_TOO_LONG_LIVED. Gives cliniko_test_connection() clinisync_http.test_timeout. Both settings are the function''s: ALTER FUNCTION … SET.';

COMMIT;
