/*
 * json.h
 *		Read JSON in place.
 */
#ifndef CLINISYNC_JSON_H
#define CLINISYNC_JSON_H

#include "postgres.h"

#include "utils/jsonb.h"

/*
 * How many characters of a number jsonb may write out, more than any amount, count or
 * id has; and so, how many times longer than what was sent its text can be, as "1e39" is.
 */
#define JSON_MAX_NUMBER_LENGTH 40
#define JSON_MAX_GROWTH 10

/* A value as it stands in a text: from its first character to its last. */
typedef struct JsonText
{
	const char *at;
	int			len;
} JsonText;

/* A member of an object, by offsets from the object's first character. */
typedef struct JsonMember
{
	int			key;			/* with its quotes */
	int			key_len;
	int			value;
	int			value_len;
} JsonMember;

/* An object with its members at hand. */
typedef struct JsonObject
{
	JsonText	text;
	JsonMember *members;
	int			nmembers;
} JsonObject;

/* Where a walk through an object or an array is. */
typedef struct JsonWalk
{
	const char *at;
	const char *end;
} JsonWalk;

/* Where the reading of a text is that is checked on the way. */
typedef struct JsonReader
{
	const char *at;				/* NULL once something was not well-formed */
	const char *end;
	bool		first;			/* nothing was read in this object or array yet */
} JsonReader;

extern bool json_check(const char *text, size_t len, JsonText *value);
extern void json_read(JsonReader *reader, const char *text, size_t len);
extern void json_enter(JsonReader *reader, char bracket);
extern bool json_read_key(JsonReader *reader, JsonText *key);
extern bool json_has_element(JsonReader *reader);
extern void json_read_value(JsonReader *reader, JsonText *value);
extern bool json_read_object(JsonReader *reader, JsonObject *object);
extern bool json_read_end(JsonReader *reader);

extern JsonText json_key(const JsonObject *object, int i);
extern JsonText json_value(const JsonObject *object, int i);

extern bool json_is_object(JsonText value);
extern bool json_is_array(JsonText value);
extern bool json_is_string(JsonText value);
extern bool json_is_absent(JsonText value);

extern void json_walk(JsonText container, JsonWalk *walk);
extern bool json_next_member(JsonWalk *walk, JsonText *key, JsonText *value);
extern bool json_next_element(JsonWalk *walk, JsonText *value);
extern bool json_find(JsonText object, const char *key, JsonText *value);

extern int	json_unescape(JsonText string, char *into);
extern char *json_string(JsonText string);
extern bool json_boolean(JsonText value, bool *result);
extern bool json_int64(JsonText value, int64 *result);
extern Jsonb *json_to_jsonb(JsonText value);
extern bool parse_int64(const char *digits, int len, int64 *value);

/* Whether a string is this text, which needs no escapes; len: strlen(text). */
static inline bool
json_equals_text(JsonText string, const char *text, int len)
{
	return string.len == len + 2 && *string.at == '"' && memcmp(string.at + 1, text, len) == 0;
}

/* Likewise, for a literal, whose length the compiler knows. */
#define json_equals(string, text) json_equals_text(string, text, strlen(text))

#endif							/* CLINISYNC_JSON_H */
