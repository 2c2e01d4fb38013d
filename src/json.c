/*
 * json.c
 *		Read JSON in place.
 *
 * A text is checked once, by json_check() as a whole or by a JsonReader on the
 * way: after that a value is a pair of pointers into it, and walking through an
 * object or an array only has to find the ends of values. Nothing is copied or
 * allocated until a value is wanted in another form.
 *
 * Why not jsonb: making jsonb of a page sorts, copies and aligns everything in
 * it, which costs more than storing the patients, and most of a page is usually
 * unchanged and not looked at at all. It is made for the columns of that type
 * alone, and of values that have been checked, which spares them jsonb_in's parser.
 *
 * What JSON allows and a text of PostgreSQL's cannot hold, \u0000 and halves of
 * surrogate pairs, is read as U+FFFD: one odd name must not cost a page. A number
 * that PostgreSQL would write out at a multiple of its length is read as a string:
 * many of them could be stored, but not be read or dumped again.
 */
#include "postgres.h"

#include <ctype.h>
#include <limits.h>

#include "common/int.h"
#include "mb/pg_wchar.h"
#include "port/pg_bitutils.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "json.h"

/* Deeper nesting than any record has by far. */
#define MAX_DEPTH 100

#define REPLACEMENT_CHARACTER 0xFFFD

/* No exponent that matters is larger. */
#define MAX_EXPONENT 1000000

static const char *
skip_blanks(const char *at, const char *end)
{
	while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t'))
		at++;
	return at;
}

/*
 * Checking. Each function is given the first character of something and
 * answers the one behind its end, or NULL where it is not well-formed.
 */

/* What does not simply stand for itself in a string. */
static const bool special[256] = {
	['\0'] = true, true, true, true, true, true, true, true,
	true, true, true, true, true, true, true, true,
	true, true, true, true, true, true, true, true,
	true, true, true, true, true, true, true, true,
	['"'] = true, ['\\'] = true
};

/* The same byte, eight times. */
#define EIGHT(byte) (UINT64CONST(0x0101010101010101) * (byte))

/*
 * Which of eight bytes are special: all at once, by the borrow that reaches a
 * byte's highest bit where the byte is less than what is taken from it. That bit
 * tells; only behind the first special byte it may do so wrongly.
 */
static inline uint64
find_special(const char *at)
{
	uint64		bytes;
	uint64		quotes;
	uint64		backslashes;

	memcpy(&bytes, at, sizeof(bytes));
	quotes = bytes ^ EIGHT('"');	/* a quote is zero now */
	backslashes = bytes ^ EIGHT('\\');
	return (((bytes - EIGHT(' ')) & ~bytes) | ((quotes - EIGHT(1)) & ~quotes) |
			((backslashes - EIGHT(1)) & ~backslashes)) & EIGHT(0x80);
}

static const char *
check_string(const char *at, const char *end)
{
	for (at++;; at++)
	{
		uint64		found = 0;

		while (end - at > sizeof(uint64) && (found = find_special(at)) == 0)
			at += sizeof(uint64);
#ifndef WORDS_BIGENDIAN
		if (found != 0)
			at += pg_rightmost_one_pos64(found) / BITS_PER_BYTE;
#endif
		while (at < end && !special[(unsigned char) *at])
			at++;
		if (at == end)
			return NULL;
		if (*at == '"')
			return at + 1;
		if (*at != '\\')
			return NULL;
		if (++at == end || strchr("\"\\/bfnrtu", *at) == NULL)
			return NULL;
		if (*at == 'u')
		{
			for (int i = 1; i <= 4; i++)
			{
				if (at + i >= end || !isxdigit((unsigned char) at[i]))
					return NULL;
			}
			at += 4;
		}
	}
}

static const char *
check_digits(const char *at, const char *end)
{
	const char *start = at;

	while (at < end && *at >= '0' && *at <= '9')
		at++;
	return at > start ? at : NULL;
}

static const char *
check_number(const char *at, const char *end)
{
	if (*at == '-')
		at++;
	if (at < end && *at == '0')
		at++;
	else
		at = check_digits(at, end);
	if (at && at < end && *at == '.')
		at = check_digits(at + 1, end);
	if (at && at < end && (*at == 'e' || *at == 'E'))
	{
		at++;
		if (at < end && (*at == '+' || *at == '-'))
			at++;
		at = check_digits(at, end);
	}
	return at;
}

static const char *
check_word(const char *at, const char *end, const char *word)
{
	size_t		len = strlen(word);

	return end - at >= len && memcmp(at, word, len) == 0 ? at + len : NULL;
}

static const char *
check_value(const char *at, const char *end, int depth)
{
	bool		object;
	char		closing;

	if (at >= end || depth > MAX_DEPTH)
		return NULL;
	switch (*at)
	{
		case '"':
			return check_string(at, end);
		case 't':
			return check_word(at, end, "true");
		case 'f':
			return check_word(at, end, "false");
		case 'n':
			return check_word(at, end, "null");
		case '{':
		case '[':
			break;
		default:
			return check_number(at, end);
	}

	object = (*at == '{');
	closing = object ? '}' : ']';
	at = skip_blanks(at + 1, end);
	if (at < end && *at == closing)
		return at + 1;
	for (;;)
	{
		if (object)
		{
			if (at >= end || *at != '"' || (at = check_string(at, end)) == NULL)
				return NULL;
			at = skip_blanks(at, end);
			if (at >= end || *at != ':')
				return NULL;
			at = skip_blanks(at + 1, end);
		}
		at = check_value(at, end, depth + 1);
		if (at == NULL)
			return NULL;
		at = skip_blanks(at, end);
		if (at >= end)
			return NULL;
		if (*at == closing)
			return at + 1;
		if (*at != ',')
			return NULL;
		at = skip_blanks(at + 1, end);
	}
}

/*
 * Reading: finding values in a text that is checked on the way, which spares a
 * large one a second look. What is not well-formed ends all reading; only
 * json_read_end() tells.
 */

/* Begin to read a text, which must be UTF-8. */
void
json_read(JsonReader *reader, const char *text, size_t len)
{
	bool		valid = text != NULL && len <= INT_MAX && pg_verify_mbstr(PG_UTF8, text, len, true);

	reader->at = valid ? skip_blanks(text, text + len) : NULL;
	reader->end = text + len;
	reader->first = true;
}

/* Move past a character that has to come next. */
static void
expect(JsonReader *reader, char character)
{
	if (reader->at == NULL || reader->at >= reader->end || *reader->at != character)
		reader->at = NULL;
	else
		reader->at = skip_blanks(reader->at + 1, reader->end);
}

/* Go into the object or array that has to come next. */
void
json_enter(JsonReader *reader, char bracket)
{
	expect(reader, bracket);
	reader->first = true;
}

/* Whether something is left in this object or array; if not, leave it. */
static bool
has_more(JsonReader *reader, char closing)
{
	bool		first = reader->first;

	reader->first = false;
	if (reader->at == NULL || reader->at >= reader->end)
	{
		reader->at = NULL;
		return false;
	}
	if (*reader->at == closing)
	{
		expect(reader, closing);
		return false;
	}
	if (!first)
		expect(reader, ',');
	return reader->at != NULL;
}

/* The value that has to come next. */
void
json_read_value(JsonReader *reader, JsonText *value)
{
	const char *end = reader->at ? check_value(reader->at, reader->end, 0) : NULL;

	*value = (JsonText) {reader->at, end ? end - reader->at : 0};
	reader->at = end ? skip_blanks(end, reader->end) : NULL;
}

/* The next key of the object entered last; its value has to be read next. */
bool
json_read_key(JsonReader *reader, JsonText *key)
{
	if (!has_more(reader, '}'))
		return false;
	json_read_value(reader, key);
	if (reader->at != NULL && !json_is_string(*key))
		reader->at = NULL;
	expect(reader, ':');
	return reader->at != NULL;
}

/* Whether the array entered last has another element; it has to be read next. */
bool
json_has_element(JsonReader *reader)
{
	return has_more(reader, ']');
}

/* Room for the members of an object, at first and at most; a patient has 57. */
#define FIRST_MEMBERS 64
#define MOST_MEMBERS 1024

/* Note a member; those beyond MOST_MEMBERS are only counted. */
static void
add_member(JsonObject *object, int *size, const JsonMember *member)
{
	if (object->nmembers == *size && *size < MOST_MEMBERS)
	{
		*size *= 2;
		object->members = repalloc(object->members, sizeof(JsonMember) * *size);
	}
	if (object->nmembers < *size)
		object->members[object->nmembers] = *member;
	object->nmembers++;
}

/* Check an object like check_value(), and note its members. */
static const char *
read_members(JsonObject *object, const char *start, const char *end)
{
	const char *at = skip_blanks(start + 1, end);
	int			size = FIRST_MEMBERS;

	object->members = palloc(sizeof(JsonMember) * size);
	if (at < end && *at == '}')
		return at + 1;
	for (;;)
	{
		JsonMember	member = {.key = at - start};

		if (at >= end || *at != '"' || (at = check_string(at, end)) == NULL)
			return NULL;
		member.key_len = at - start - member.key;
		at = skip_blanks(at, end);
		if (at >= end || *at != ':')
			return NULL;
		at = skip_blanks(at + 1, end);
		member.value = at - start;
		at = check_value(at, end, 0);
		if (at == NULL)
			return NULL;
		member.value_len = at - start - member.value;
		add_member(object, &size, &member);
		at = skip_blanks(at, end);
		if (at >= end)
			return NULL;
		if (*at == '}')
			return at + 1;
		if (*at != ',')
			return NULL;
		at = skip_blanks(at + 1, end);
	}
}

/*
 * The object that has to come next, with its members, palloc'ed; or without any
 * where they are too many to be a record's. Returns false, having read nothing,
 * where another value comes next.
 */
bool
json_read_object(JsonReader *reader, JsonObject *object)
{
	const char *start = reader->at;
	const char *end;

	if (start == NULL || start >= reader->end || *start != '{')
		return false;
	memset(object, 0, sizeof(*object));
	end = read_members(object, start, reader->end);
	if (end == NULL || object->nmembers > MOST_MEMBERS)
		object->nmembers = 0;
	object->text = (JsonText) {start, end ? end - start : 0};
	reader->at = end ? skip_blanks(end, reader->end) : NULL;
	return true;
}

/* Whether all of the text was read, and was well-formed. */
bool
json_read_end(JsonReader *reader)
{
	return reader->at != NULL && reader->at == reader->end;
}

/* Check that a text is JSON in UTF-8, and find the value in it. */
bool
json_check(const char *text, size_t len, JsonText *value)
{
	JsonReader	reader;

	json_read(&reader, text, len);
	json_read_value(&reader, value);
	return json_read_end(&reader);
}

/*
 * Walking through what has been checked.
 */

/* Behind a string, from its opening quote: the next quote without a backslash. */
static const char *
string_end(const char *at)
{
	for (;;)
	{
		const char *quote = rawmemchr(at + 1, '"');
		const char *before = quote;

		while (before[-1] == '\\')
			before--;
		if ((quote - before) % 2 == 0)
			return quote + 1;
		at = quote;
	}
}

/* Behind an object or an array, from its opening bracket. */
static const char *
container_end(const char *at)
{
	int			depth = 0;

	for (;;)
	{
		at += strcspn(at, "\"{}[]");
		if (*at == '"')
		{
			at = string_end(at);
			continue;
		}
		depth += (*at == '{' || *at == '[') ? 1 : -1;
		at++;
		if (depth == 0)
			return at;
	}
}

/* Where a value ends. */
static const char *
value_end(const char *at)
{
	if (*at == '"')
		return string_end(at);
	if (*at == '{' || *at == '[')
		return container_end(at);
	return at + strcspn(at, ",]} \t\r\n");
}

bool
json_is_object(JsonText value)
{
	return *value.at == '{';
}

bool
json_is_array(JsonText value)
{
	return *value.at == '[';
}

bool
json_is_string(JsonText value)
{
	return *value.at == '"';
}

/* Cliniko sends what is absent as null, as "", or not at all. */
bool
json_is_absent(JsonText value)
{
	return *value.at == 'n' || (value.len == 2 && *value.at == '"');
}

/* Begin a walk through the members of an object or the elements of an array. */
void
json_walk(JsonText container, JsonWalk *walk)
{
	walk->at = container.at + 1;
	walk->end = container.at + container.len - 1;
}

/* Take the next value, and what separates it from the one behind it. */
static void
take_value(JsonWalk *walk, JsonText *value)
{
	value->at = walk->at;
	walk->at = value_end(walk->at);
	value->len = walk->at - value->at;
	walk->at = skip_blanks(walk->at, walk->end);
	if (walk->at < walk->end)
		walk->at++;				/* the comma, or the colon behind a key */
}

/* The next member of an object; the key is a string value, with its quotes. */
bool
json_next_member(JsonWalk *walk, JsonText *key, JsonText *value)
{
	walk->at = skip_blanks(walk->at, walk->end);
	if (walk->at >= walk->end)
		return false;
	take_value(walk, key);
	walk->at = skip_blanks(walk->at, walk->end);
	take_value(walk, value);
	return true;
}

/* The next element of an array. */
bool
json_next_element(JsonWalk *walk, JsonText *value)
{
	walk->at = skip_blanks(walk->at, walk->end);
	if (walk->at >= walk->end)
		return false;
	take_value(walk, value);
	return true;
}

/* The key of a member, a string with its quotes. */
JsonText
json_key(const JsonObject *object, int i)
{
	return (JsonText) {object->text.at + object->members[i].key, object->members[i].key_len};
}

JsonText
json_value(const JsonObject *object, int i)
{
	return (JsonText) {object->text.at + object->members[i].value, object->members[i].value_len};
}

/* A member of an object; false where there is none, or this is no object. */
bool
json_find(JsonText object, const char *key, JsonText *value)
{
	JsonWalk	walk;
	JsonText	found;

	if (!json_is_object(object))
		return false;
	json_walk(object, &walk);
	while (json_next_member(&walk, &found, value))
	{
		if (json_equals(found, key))
			return true;
	}
	return false;
}

/*
 * Values in other forms
 */

/* The number that four hexadecimal digits are. */
static int
hexadecimal(const char *at)
{
	int			value = 0;

	for (int i = 0; i < 4; i++)
		value = value * 16 + (isdigit((unsigned char) at[i]) ? at[i] - '0'
							  : tolower((unsigned char) at[i]) - 'a' + 10);
	return value;
}

/*
 * Read \uXXXX, or two of them that are a surrogate pair, and move behind. What
 * no text can hold is U+FFFD.
 */
static pg_wchar
read_unicode_escape(const char **at, const char *end)
{
	int			first = hexadecimal(*at + 2);

	*at += 6;
	if (first >= 0xD800 && first <= 0xDBFF && end - *at >= 6 && (*at)[0] == '\\' && (*at)[1] == 'u')
	{
		int			second = hexadecimal(*at + 2);

		if (second >= 0xDC00 && second <= 0xDFFF)
		{
			*at += 6;
			return 0x10000 + ((first & 0x3FF) << 10) + (second & 0x3FF);
		}
	}
	if (first == 0 || (first >= 0xD800 && first <= 0xDFFF))
		return REPLACEMENT_CHARACTER;
	return first;
}

/*
 * Write what a string means, without a NUL behind it; "into" has room for the
 * string's length. Returns how many bytes that are.
 */
int
json_unescape(JsonText string, char *into)
{
	const char *at = string.at + 1;
	const char *end = string.at + string.len - 1;
	char	   *to = into;

	while (at < end)
	{
		const char *backslash = memchr(at, '\\', end - at);
		const char *stop = backslash ? backslash : end;

		memcpy(to, at, stop - at);
		to += stop - at;
		at = stop;
		if (backslash == NULL)
			break;
		switch (at[1])
		{
			case 'u':
				{
					unsigned char utf8[8];
					int			len;

					unicode_to_utf8(read_unicode_escape(&at, end), utf8);
					len = pg_utf_mblen(utf8);
					memcpy(to, utf8, len);
					to += len;
					continue;
				}
			case 'b':
				*to++ = '\b';
				break;
			case 'f':
				*to++ = '\f';
				break;
			case 'n':
				*to++ = '\n';
				break;
			case 'r':
				*to++ = '\r';
				break;
			case 't':
				*to++ = '\t';
				break;
			default:
				*to++ = at[1];
				break;
		}
		at += 2;
	}
	return to - into;
}

/* What a string means, palloc'ed; NULL where the value is no string. */
char *
json_string(JsonText string)
{
	char	   *text;

	if (!json_is_string(string))
		return NULL;
	text = palloc(string.len);
	text[json_unescape(string, text)] = '\0';
	return text;
}

bool
json_boolean(JsonText value, bool *result)
{
	*result = (*value.at == 't');
	return *value.at == 't' || *value.at == 'f';
}

/* Read digits as an int64: an id is never negative, and never a float. */
bool
parse_int64(const char *digits, int len, int64 *value)
{
	int64		result = 0;

	if (len < 1)
		return false;
	for (int i = 0; i < len; i++)
	{
		if (digits[i] < '0' || digits[i] > '9' ||
			pg_mul_s64_overflow(result, 10, &result) ||
			pg_add_s64_overflow(result, digits[i] - '0', &result))
			return false;
	}
	*value = result;
	return true;
}

/* An id or a count, as a number or as a string of digits. */
bool
json_int64(JsonText value, int64 *result)
{
	if (json_is_string(value))
		return parse_int64(value.at + 1, value.len - 2, result);
	return parse_int64(value.at, value.len, result);
}

/* How many digits there are. */
static int
count_digits(const char *at, const char *end)
{
	const char *start = at;

	while (at < end && isdigit((unsigned char) *at))
		at++;
	return at - start;
}

/*
 * How long a number is, at most, where PostgreSQL writes it out, which it does
 * without an exponent.
 */
static int
written_length(JsonText number)
{
	const char *at = number.at;
	const char *end = number.at + number.len;
	int			sign = (*at == '-');
	int			whole = count_digits(at + sign, end);
	int			fraction = 0;
	int			exponent = 0;

	at += sign + whole;
	if (at < end && *at == '.')
	{
		fraction = count_digits(at + 1, end);
		at += 1 + fraction;
	}
	if (at < end)
	{
		bool		negative = (at[1] == '-');

		for (at += (negative || at[1] == '+') ? 2 : 1; at < end; at++)
			exponent = Min(exponent * 10 + (*at - '0'), MAX_EXPONENT);
		if (negative)
			exponent = -exponent;
	}
	whole = Max(whole + exponent, 1);
	fraction = Max(fraction - exponent, 0);
	return sign + whole + (fraction > 0 ? 1 + fraction : 0);
}

/* A value other than an object or an array, for jsonb. */
static JsonbValue
jsonb_scalar(JsonText value)
{
	JsonbValue	scalar = {.type = jbvNull};

	if (json_is_string(value))
	{
		scalar.type = jbvString;
		scalar.val.string.val = palloc(value.len);
		scalar.val.string.len = json_unescape(value, scalar.val.string.val);
		/* no text that is read here is longer: see clinisync.max_response_size */
		Assert(scalar.val.string.len <= JENTRY_OFFLENMASK);
	}
	else if (json_boolean(value, &scalar.val.boolean))
		scalar.type = jbvBool;
	else if (*value.at != 'n' && written_length(value) > JSON_MAX_NUMBER_LENGTH)
	{
		scalar.type = jbvString;
		scalar.val.string.val = unconstify(char *, value.at);
		scalar.val.string.len = value.len;
	}
	else if (*value.at != 'n')
	{
		scalar.type = jbvNumeric;
		scalar.val.numeric =
			DatumGetNumeric(DirectFunctionCall3(numeric_in,
												CStringGetDatum(pnstrdup(value.at, value.len)),
												ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
	}
	return scalar;
}

/*
 * Make jsonb of the value that begins here, in one pass. Returns what is behind
 * it. role: what it is in the object or array that it stands in.
 */
static const char *
push_value(JsonbParseState **state, const char *at, const char *end, JsonbIteratorToken role,
		   JsonbValue **pushed)
{
	bool		object = (*at == '{');
	char		closing = object ? '}' : ']';

	if (!object && *at != '[')
	{
		const char *behind = value_end(at);
		JsonbValue	scalar = jsonb_scalar((JsonText) {at, behind - at});

		*pushed = pushJsonbValue(state, role, &scalar);
		return behind;
	}
	pushJsonbValue(state, object ? WJB_BEGIN_OBJECT : WJB_BEGIN_ARRAY, NULL);
	for (at = skip_blanks(at + 1, end); *at != closing; at = skip_blanks(at, end))
	{
		if (*at == ',')
			at = skip_blanks(at + 1, end);
		if (object)
		{
			at = push_value(state, at, end, WJB_KEY, pushed);
			at = skip_blanks(skip_blanks(at, end) + 1, end);
		}
		at = push_value(state, at, end, object ? WJB_VALUE : WJB_ELEM, pushed);
	}
	*pushed = pushJsonbValue(state, object ? WJB_END_OBJECT : WJB_END_ARRAY, NULL);
	return at + 1;
}

/*
 * A value as jsonb, palloc'ed. Whatever it holds, its text is at most JSON_MAX_GROWTH
 * times as long as what was sent: a number that would be longer than
 * JSON_MAX_NUMBER_LENGTH becomes a string, as it was sent.
 */
Jsonb *
json_to_jsonb(JsonText value)
{
	JsonbParseState *state = NULL;
	JsonbValue	scalar;
	JsonbValue *pushed = &scalar;

	if (json_is_object(value) || json_is_array(value))
		(void) push_value(&state, value.at, value.at + value.len, WJB_ELEM, &pushed);
	else
		scalar = jsonb_scalar(value);
	return JsonbValueToJsonb(pushed);
}
