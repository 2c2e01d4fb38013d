/*
 * secret.c
 *		Seal and open an API key.
 *
 * A sealed key is, byte after byte:
 *
 *	1		the format, FORMAT_AES_256_GCM
 *	4		which key of the key file it was sealed with
 *	12		a nonce, fresh for every sealing
 *	n		the API key, encrypted
 *	16		the tag, over all of the above and the organization's id
 *
 * So a value that was altered, or moved to another organization's row, does not
 * open. The key file (keyfile.c) is outside the database: a dump, a replica of
 * the table or an SQL injection reveals no API key. Who can read the server's
 * files and tables, as a superuser can, can open them: they are not safe from
 * that, nor could they be, since the worker has to send them.
 *
 * Memory: keys are wiped here as soon as they were used; what secret_open()
 * returns, its caller wipes. No error is raised while a key is in memory.
 */
#include "postgres.h"

#include <openssl/err.h>
#include <openssl/evp.h>

#include "clinisync.h"
#include "compat.h"
#include "keyfile.h"
#include "secret.h"

#define FORMAT_AES_256_GCM 1

#define KEY_ID_SIZE 4
#define NONCE_SIZE 12
#define TAG_SIZE 16

/* Where things are in a sealed key. */
#define KEY_ID_AT 1
#define NONCE_AT (KEY_ID_AT + KEY_ID_SIZE)
#define TEXT_AT (NONCE_AT + NONCE_SIZE)
#define OVERHEAD (TEXT_AT + TAG_SIZE)

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

/*
 * Encrypt or decrypt. sealed has its first TEXT_AT bytes; the text between
 * them and the tag is read or written there. plain: the other side.
 */
static bool
run_cipher(bool encrypt, const unsigned char *key, const char *organization_id,
		   unsigned char *sealed, unsigned char *plain, int size)
{
	EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
	unsigned char *text = sealed + TEXT_AT;
	unsigned char *tag = text + size;
	int			n;
	bool		done;

	done = context != NULL &&
		EVP_CipherInit_ex(context, EVP_aes_256_gcm(), NULL, key, sealed + NONCE_AT, encrypt) == 1 &&
		EVP_CipherUpdate(context, NULL, &n, sealed, NONCE_AT) == 1 &&
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

/* Seal an API key for an organization's row; palloc'ed. */
bytea *
secret_seal(const char *secret, const char *organization_id)
{
	int			size = strlen(secret);
	bytea	   *result = palloc(VARHDRSZ + OVERHEAD + size);
	unsigned char *sealed = (unsigned char *) VARDATA(result);
	KeyRing		ring;
	const char *problem = keyfile_read_or_make(&ring);
	bool		done;

	if (problem)
		raise_problem(problem);
	SET_VARSIZE(result, VARHDRSZ + OVERHEAD + size);
	sealed[0] = FORMAT_AES_256_GCM;
	done = key_id(ring.keys[0], sealed + KEY_ID_AT) &&
		pg_strong_random(sealed + NONCE_AT, NONCE_SIZE) &&
		run_cipher(true, ring.keys[0], organization_id, sealed, (unsigned char *) secret, size);
	keyfile_wipe(&ring);
	if (!done)
		raise_problem("OpenSSL refused to encrypt: see whether it offers AES-256-GCM.");
	return result;
}

/*
 * Open an API key that was sealed for this organization; palloc'ed, and the
 * caller's to wipe. Where that cannot be, answers NULL and a sentence on why,
 * and what to do.
 */
char *
secret_open(const bytea *sealed, const char *organization_id, const char **problem)
{
	unsigned char *bytes = (unsigned char *) VARDATA_ANY(sealed);
	int			size = (int) VARSIZE_ANY_EXHDR(sealed) - OVERHEAD;
	const unsigned char *key;
	unsigned char *secret;
	KeyRing		ring;

	if (size < 1 || size > MAX_SECRET_SIZE || bytes[0] != FORMAT_AES_256_GCM)
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
 * Put a new key first into the key file; from now on it seals. Answers how many
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
