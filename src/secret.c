/*
 * secret.c
 *		Seal and open an API key.
 *
 * A sealed key is, byte after byte:
 *
 *	1		the format, FORMAT_OF_DATABASE
 *	4		which key of the key file it was sealed with
 *	4		which database it was sealed in, by its OID
 *	12		a nonce, fresh for every sealing
 *	n		the API key, encrypted
 *	16		the tag, over all of the above and the organization's id
 *
 * So a value that was altered, or moved to another organization's row or to
 * another database, does not open. A database keeps its OID when it is renamed, on
 * a standby, and through pg_upgrade; a copy of it, made by CREATE DATABASE or from
 * a dump, has another. There a superuser may have the values adopted: opened
 * wherever they were sealed, and sealed anew. So are those of FORMAT_OF_ORGANIZATION,
 * which have no OID and are of earlier versions: a value that opens everywhere is
 * not taken without being asked for.
 *
 * The key file (keyfile.c) is outside the database: a dump, a replica of
 * the table or an SQL injection reveals no API key. Who can read the server's
 * files and tables, as a superuser can, can open them: they are not safe from
 * that, nor could they be, since the worker has to send them.
 *
 * Memory: keys are wiped here as soon as they were used; what secret_open()
 * returns, its caller wipes. Where an error is raised while a key is in memory,
 * it is wiped on the way.
 */
#include "postgres.h"

#include <openssl/err.h>
#include <openssl/evp.h>

#include "miscadmin.h"
#include "port/pg_bswap.h"

#include "clinisync.h"
#include "compat.h"
#include "keyfile.h"
#include "secret.h"

#define FORMAT_OF_ORGANIZATION 1
#define FORMAT_OF_DATABASE 2

#define KEY_ID_SIZE 4
#define DATABASE_SIZE 4
#define NONCE_SIZE 12
#define TAG_SIZE 16

/* Where things are in a sealed key. */
#define KEY_ID_AT 1
#define DATABASE_AT (KEY_ID_AT + KEY_ID_SIZE)

static const int nonce_at[] = {
	[FORMAT_OF_ORGANIZATION] = DATABASE_AT,
	[FORMAT_OF_DATABASE] = DATABASE_AT + DATABASE_SIZE,
};

/* An API key is far shorter; see cliniko_parse_key(). */
#define MAX_SECRET_SIZE 8192

/* Tell keys apart without revealing them. */
static bool
key_id(const unsigned char *key, unsigned char id[KEY_ID_SIZE])
{
	static const char purpose[] = "clinisync key id";
	unsigned char input[sizeof(purpose) + KEYFILE_KEY_SIZE];
	unsigned char hash[EVP_MAX_MD_SIZE];
	bool		done;

	memcpy(input, purpose, sizeof(purpose));
	memcpy(input + sizeof(purpose), key, KEYFILE_KEY_SIZE);
	done = EVP_Digest(input, sizeof(input), hash, NULL, EVP_sha256(), NULL) == 1;
	memcpy(id, hash, KEY_ID_SIZE);
	explicit_bzero(input, sizeof(input));
	explicit_bzero(hash, sizeof(hash));
	return done;
}

/* The key of this id, or NULL. */
static const unsigned char *
find_key(const KeyRing *ring, const unsigned char *id)
{
	unsigned char other[KEY_ID_SIZE];

	for (int i = 0; i < ring->count; i++)
	{
		if (key_id(ring->keys[i], other) && memcmp(id, other, KEY_ID_SIZE) == 0)
			return ring->keys[i];
	}
	return NULL;
}

/* How much longer a sealed key is than the API key; 0 where its format is not known. */
static int
overhead(const unsigned char *sealed, int size)
{
	if (size < 1 || sealed[0] < FORMAT_OF_ORGANIZATION || sealed[0] > FORMAT_OF_DATABASE)
		return 0;
	return nonce_at[sealed[0]] + NONCE_SIZE + TAG_SIZE;
}

/*
 * Encrypt or decrypt. sealed has all that is before the text; the text between
 * that and the tag is read or written there. plain: the other side.
 */
static bool
run_cipher(bool encrypt, const unsigned char *key, const char *organization_id,
		   unsigned char *sealed, unsigned char *plain, int size)
{
	EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
	unsigned char *nonce = sealed + nonce_at[sealed[0]];
	unsigned char *text = nonce + NONCE_SIZE;
	unsigned char *tag = text + size;
	int			n;
	bool		done;

	done = context != NULL &&
		EVP_CipherInit_ex(context, EVP_aes_256_gcm(), NULL, key, nonce, encrypt) == 1 &&
		EVP_CipherUpdate(context, NULL, &n, sealed, nonce - sealed) == 1 &&
		EVP_CipherUpdate(context, NULL, &n, (const unsigned char *) organization_id,
						 strlen(organization_id)) == 1 &&
		EVP_CipherUpdate(context, encrypt ? text : plain, &n, encrypt ? plain : text, size) == 1 &&
		(encrypt || EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, TAG_SIZE, tag) == 1) &&
		EVP_CipherFinal_ex(context, (encrypt ? text : plain) + n, &n) == 1 &&
		(!encrypt || EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, TAG_SIZE, tag) == 1);
	EVP_CIPHER_CTX_free(context);
	/* libpq and the server's TLS would take an error of ours for theirs */
	ERR_clear_error();
	return done;
}

static void
raise_problem(const char *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_CLINISYNC_CONFLICT),
			 errmsg("API keys cannot be sealed"),
			 errdetail("CREDENTIALS_UNREADABLE"),
			 errhint("%s", problem)));
}

/* Overwrite an API key, if there is one. */
void
secret_wipe(char *secret)
{
	if (secret)
		explicit_bzero(secret, strlen(secret));
}

/* Seal an API key for an organization's row in this database; palloc'ed. */
bytea *
secret_seal(const char *secret, const char *organization_id)
{
	int			text_at = nonce_at[FORMAT_OF_DATABASE] + NONCE_SIZE;
	int			size = strlen(secret);
	int			sealed_size = text_at + size + TAG_SIZE;
	uint32		database = pg_hton32(MyDatabaseId);
	bytea	   *result = palloc(VARHDRSZ + sealed_size);
	unsigned char *sealed = (unsigned char *) VARDATA(result);
	KeyRing		ring;
	const char *problem = keyfile_read_or_make(&ring);
	bool		done;

	if (problem)
		raise_problem(problem);
	SET_VARSIZE(result, VARHDRSZ + sealed_size);
	sealed[0] = FORMAT_OF_DATABASE;
	memcpy(sealed + DATABASE_AT, &database, DATABASE_SIZE);
	done = key_id(ring.keys[0], sealed + KEY_ID_AT) &&
		pg_strong_random(sealed + nonce_at[FORMAT_OF_DATABASE], NONCE_SIZE) &&
		run_cipher(true, ring.keys[0], organization_id, sealed, (unsigned char *) secret, size);
	keyfile_wipe(&ring);
	if (!done)
		raise_problem("OpenSSL refused to encrypt: see whether it offers AES-256-GCM.");
	return result;
}

/* Whether a key was sealed in this database. */
bool
secret_is_of_database(const bytea *sealed)
{
	const unsigned char *bytes = (const unsigned char *) VARDATA_ANY(sealed);
	uint32		database = pg_hton32(MyDatabaseId);

	return VARSIZE_ANY_EXHDR(sealed) >= DATABASE_AT + DATABASE_SIZE &&
		bytes[0] == FORMAT_OF_DATABASE &&
		memcmp(bytes + DATABASE_AT, &database, DATABASE_SIZE) == 0;
}

/* Open an API key that was sealed for this organization, in whichever database. */
static char *
open_sealed(const bytea *sealed, const char *organization_id, const char **problem)
{
	unsigned char *bytes = (unsigned char *) VARDATA_ANY(sealed);
	int			sealed_size = VARSIZE_ANY_EXHDR(sealed);
	int			rest = overhead(bytes, sealed_size);
	int			size = sealed_size - rest;
	const unsigned char *key;
	unsigned char *secret;
	KeyRing		ring;

	if (rest == 0 || size < 1 || size > MAX_SECRET_SIZE)
	{
		*problem = "It is not in a form that this version of clinisync knows: "
			"pass the API key to cliniko_connect() again.";
		return NULL;
	}
	secret = palloc0(size + 1);
	*problem = keyfile_read(&ring);
	if (*problem)
		return NULL;
	key = find_key(&ring, bytes + KEY_ID_AT);
	if (key == NULL)
		*problem = "It was sealed with a key that is not in the file that clinisync.key_file names: "
			"add that key's line to the file, or pass the API key to cliniko_connect() again.";
	else if (!run_cipher(false, key, organization_id, bytes, secret, size))
		*problem = "It was altered, or belongs to another organization: "
			"pass the API key to cliniko_connect() again.";
	keyfile_wipe(&ring);
	if (*problem)
	{
		explicit_bzero(secret, size);
		return NULL;
	}
	return (char *) secret;
}

/*
 * Open an API key that was sealed for this organization in this database;
 * palloc'ed, and the caller's to wipe. Where that cannot be, answers NULL and a
 * sentence on why, and what to do.
 */
char *
secret_open(const bytea *sealed, const char *organization_id, const char **problem)
{
	const unsigned char *bytes = (const unsigned char *) VARDATA_ANY(sealed);

	if (overhead(bytes, VARSIZE_ANY_EXHDR(sealed)) > 0 && !secret_is_of_database(sealed))
	{
		*problem = "It was sealed in another database, or by an earlier version of clinisync: "
			"if it belongs here, a superuser calls cliniko_adopt_keys(); "
			"or pass the API key to cliniko_connect() again.";
		return NULL;
	}
	return open_sealed(sealed, organization_id, problem);
}

/*
 * Seal a sealed API key with the key that is now the first in the key file, for
 * this database; palloc'ed. adopt: wherever it was sealed. Where it cannot be
 * opened, answers NULL and why.
 */
bytea *
secret_reseal(const bytea *sealed, const char *organization_id, bool adopt, const char **problem)
{
	char	   *secret = adopt ? open_sealed(sealed, organization_id, problem)
		: secret_open(sealed, organization_id, problem);
	bytea	   *volatile resealed = NULL;

	if (secret == NULL)
		return NULL;
	PG_TRY();
	{
		resealed = secret_seal(secret, organization_id);
	}
	PG_FINALLY();
	{
		secret_wipe(secret);
	}
	PG_END_TRY();
	return resealed;
}

/*
 * Put a new key first into the key file; from now on it seals. Returns how many
 * keys the file has.
 */
int
secret_add_key(void)
{
	KeyRing		ring;
	const char *problem = keyfile_add(&ring);
	int			count;

	if (problem)
		raise_problem(problem);
	count = ring.count;
	keyfile_wipe(&ring);
	return count;
}
