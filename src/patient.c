/*
 * patient.c
 *		One Cliniko patient as a row of the table patients.
 *
 * The table fields[] is the map from Cliniko's record to our columns: a field
 * that Cliniko adds is one line here and one in sql/clinisync.sql. Until then
 * it arrives in the column "extra", so that nothing is lost.
 *
 * Nothing here raises an error for what a record holds: an impossible value is
 * reported by its column, and costs that record alone. This file knows neither
 * SPI nor the wire. Memory: values are palloc'ed in the current context.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "json.h"
#include "patient.h"

/*
 * Raised whenever fields[] changes, so that every row is written anew by the
 * next run: rows are compared by hash, and the hash begins with this.
 */
#define FIELD_MAP_VERSION 1

typedef enum FieldKind
{
	FIELD_TEXT,
	FIELD_BOOLEAN,
	FIELD_DATE,
	FIELD_TIMESTAMP,
	FIELD_JSON,
	FIELD_LINK,					/* {"links": {"self": url}}: the id that ends the url */
	FIELD_IMPLIED				/* carries nothing but the patient's own id */
} FieldKind;

#define FIELD(key, kind, column) {key, sizeof(key) - 1, kind, column}

/* In the order of memcmp() on the key, for bsearch(). */
static const struct
{
	const char *key;
	int			key_len;
	FieldKind	kind;
	const char *column;			/* NULL: named like the key */
}			fields[] = {
	FIELD("accepted_email_marketing", FIELD_BOOLEAN, NULL),
	FIELD("accepted_privacy_policy", FIELD_BOOLEAN, NULL),
	FIELD("accepted_sms_marketing", FIELD_BOOLEAN, NULL),
	FIELD("address_1", FIELD_TEXT, NULL),
	FIELD("address_2", FIELD_TEXT, NULL),
	FIELD("address_3", FIELD_TEXT, NULL),
	FIELD("appointment_notes", FIELD_TEXT, NULL),
	FIELD("appointments", FIELD_IMPLIED, NULL),
	FIELD("archived_at", FIELD_TIMESTAMP, NULL),
	FIELD("attendees", FIELD_IMPLIED, NULL),
	FIELD("city", FIELD_TEXT, NULL),
	FIELD("concession_type", FIELD_LINK, "concession_type_id"),
	FIELD("country", FIELD_TEXT, NULL),
	FIELD("country_code", FIELD_TEXT, NULL),
	FIELD("created_at", FIELD_TIMESTAMP, NULL),
	FIELD("custom_fields", FIELD_JSON, NULL),
	FIELD("date_of_birth", FIELD_DATE, NULL),
	FIELD("deleted_at", FIELD_TIMESTAMP, "cliniko_deleted_at"),
	FIELD("dva_card_number", FIELD_TEXT, NULL),
	FIELD("email", FIELD_TEXT, NULL),
	FIELD("emergency_contact", FIELD_TEXT, NULL),
	FIELD("first_name", FIELD_TEXT, NULL),
	FIELD("gender", FIELD_TEXT, NULL),
	FIELD("gender_identity", FIELD_TEXT, NULL),
	FIELD("id", FIELD_IMPLIED, NULL),
	FIELD("invoice_default_to", FIELD_TEXT, NULL),
	FIELD("invoice_email", FIELD_TEXT, NULL),
	FIELD("invoice_extra_information", FIELD_TEXT, NULL),
	FIELD("invoices", FIELD_IMPLIED, NULL),
	FIELD("label", FIELD_TEXT, NULL),
	FIELD("last_name", FIELD_TEXT, NULL),
	FIELD("latest_booking", FIELD_LINK, "latest_booking_id"),
	FIELD("links", FIELD_IMPLIED, NULL),
	FIELD("medical_alerts", FIELD_IMPLIED, NULL),
	FIELD("medicare", FIELD_TEXT, NULL),
	FIELD("medicare_reference_number", FIELD_TEXT, NULL),
	FIELD("merged_at", FIELD_TIMESTAMP, NULL),
	FIELD("merged_with_patient", FIELD_LINK, "merged_with_patient_id"),
	FIELD("notes", FIELD_TEXT, NULL),
	FIELD("occupation", FIELD_TEXT, NULL),
	FIELD("old_reference_id", FIELD_TEXT, NULL),
	FIELD("patient_attachments", FIELD_IMPLIED, NULL),
	FIELD("patient_phone_numbers", FIELD_JSON, NULL),
	FIELD("post_code", FIELD_TEXT, NULL),
	FIELD("preferred_first_name", FIELD_TEXT, NULL),
	FIELD("pronouns", FIELD_JSON, NULL),
	FIELD("receives_cancellation_emails", FIELD_BOOLEAN, NULL),
	FIELD("receives_confirmation_emails", FIELD_BOOLEAN, NULL),
	FIELD("referral_source", FIELD_TEXT, NULL),
	FIELD("referring_doctor", FIELD_LINK, "referring_doctor_id"),
	FIELD("relationships", FIELD_IMPLIED, NULL),
	FIELD("reminder_type", FIELD_TEXT, NULL),
	FIELD("sex", FIELD_TEXT, NULL),
	FIELD("state", FIELD_TEXT, NULL),
	FIELD("time_zone", FIELD_TEXT, NULL),
	FIELD("title", FIELD_TEXT, NULL),
	FIELD("updated_at", FIELD_TIMESTAMP, NULL),
};

/* Columns that are computed from the record as a whole follow the fields'. */
enum
{
	COLUMN_PHONE = lengthof(fields),
	COLUMN_EXTRA,
	COLUMN_END
};

StaticAssertDecl(COLUMN_END <= PATIENT_MAX_COLUMNS, "PatientRow is too small");

static const Oid kind_types[] = {
	[FIELD_TEXT] = TEXTOID,
	[FIELD_BOOLEAN] = BOOLOID,
	[FIELD_DATE] = DATEOID,
	[FIELD_TIMESTAMP] = TIMESTAMPTZOID,
	[FIELD_JSON] = JSONBOID,
	[FIELD_LINK] = INT8OID,
	[FIELD_IMPLIED] = InvalidOid,
};

/* How many values a PatientRow has; those without a column are always NULL. */
int
patient_column_count(void)
{
	return COLUMN_END;
}

/* The column that value i of a PatientRow belongs in, or NULL for none. */
const char *
patient_column_name(int column)
{
	if (column == COLUMN_PHONE)
		return "phone";
	if (column == COLUMN_EXTRA)
		return "extra";
	if (fields[column].kind == FIELD_IMPLIED)
		return NULL;
	return fields[column].column ? fields[column].column : fields[column].key;
}

Oid
patient_column_type(int column)
{
	if (column == COLUMN_PHONE)
		return TEXTOID;
	if (column == COLUMN_EXTRA)
		return JSONBOID;
	return kind_types[fields[column].kind];
}

/*
 * A hash of all that Cliniko says of a patient, as it says it. Cliniko's JSON
 * has a fixed order of keys; should that change, every row is written once
 * more, and no harm is done.
 */
int64
patient_hash(const JsonObject *record)
{
	return (int64) hash_bytes_extended((const unsigned char *) record->text.at, record->text.len,
									   FIELD_MAP_VERSION);
}

/*
 * The index of a key in fields[], or -1. likely: the index to try first, since
 * Cliniko's keys come in an order of their own that does not change.
 */
static int
find_field(JsonText key, int likely)
{
	const char *name = key.at + 1;
	int			len = key.len - 2;
	int			low = 0;
	int			high = lengthof(fields);

	if (likely < lengthof(fields) &&
		json_equals_text(key, fields[likely].key, fields[likely].key_len))
		return likely;
	while (low < high)
	{
		int			middle = (low + high) / 2;
		int			order = strncmp(name, fields[middle].key, len);

		if (order == 0 && fields[middle].key[len] == '\0')
			return middle;
		/* equal so far: the longer key sorts later */
		if (order <= 0)
			high = middle;
		else
			low = middle + 1;
	}
	return -1;
}

/* Two to four digits as a number, or -1. */
static int
read_digits(const char *at, int count)
{
	int64		value;

	return parse_int64(at, count, &value) ? (int) value : -1;
}

/* Read YYYY-MM-DD; years from 1 to 9999, days that exist. */
static bool
read_date(const char *at, int len, DateADT *date)
{
	int			year;
	int			month;
	int			day;

	if (len != 10 || at[4] != '-' || at[7] != '-')
		return false;
	year = read_digits(at, 4);
	month = read_digits(at + 5, 2);
	day = read_digits(at + 8, 2);
	if (year < 1 || month < 1 || month > 12 || day < 1 || day > day_tab[isleap(year)][month - 1])
		return false;
	*date = date2j(year, month, day) - POSTGRES_EPOCH_JDATE;
	return true;
}

/*
 * Read YYYY-MM-DDThh:mm:ssZ, which is all that Cliniko documents; and, in case
 * that changes, fractions of a second and offsets from UTC.
 */
static bool
read_timestamp(const char *at, int len, TimestampTz *timestamp)
{
	const char *end = at + len;
	DateADT		date;
	int			hour;
	int			minute;
	int			second;
	int64		fraction = 0;
	int			offset = 0;

	if (len < 20 || !read_date(at, 10, &date) || (at[10] != 'T' && at[10] != ' ') ||
		at[13] != ':' || at[16] != ':')
		return false;
	hour = read_digits(at + 11, 2);
	minute = read_digits(at + 14, 2);
	second = read_digits(at + 17, 2);
	if (hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 60)
		return false;
	at += 19;
	if (*at == '.')
	{
		int64		unit = USECS_PER_SEC / 10;

		for (at++; at < end && *at >= '0' && *at <= '9'; at++, unit /= 10)
			fraction += (*at - '0') * unit;
	}
	if (end - at == 6 && (*at == '+' || *at == '-') && at[3] == ':')
	{
		int			hours = read_digits(at + 1, 2);
		int			minutes = read_digits(at + 4, 2);

		if (hours < 0 || hours > 15 || minutes < 0 || minutes > 59)
			return false;
		offset = (hours * 60 + minutes) * (*at == '-' ? -1 : 1);
	}
	else if (end - at != 1 || *at != 'Z')
		return false;
	*timestamp = date * USECS_PER_DAY + fraction +
		((int64) hour * 3600 + (minute - offset) * 60 + second) * USECS_PER_SEC;
	return true;
}

/* Read {"links": {"self": "https://…/contacts/123"}} as 123. */
static bool
read_link(JsonText value, int64 *id)
{
	const char *end;
	const char *start;

	if (!json_find(value, "links", &value) || !json_find(value, "self", &value) ||
		!json_is_string(value))
		return false;
	start = end = value.at + value.len - 1;
	while (start > value.at + 1 && start[-1] != '/')
		start--;
	return parse_int64(start, end - start, id);
}

/* Text, or whatever else came in its place, as it was written. */
static Datum
read_text(JsonText value)
{
	text	   *result;

	if (!json_is_string(value))
		return PointerGetDatum(cstring_to_text_with_len(value.at, value.len));
	result = palloc(VARHDRSZ + value.len);
	SET_VARSIZE(result, VARHDRSZ + json_unescape(value, VARDATA(result)));
	return PointerGetDatum(result);
}

/* Turn one field's value into its column's. Returns false where it cannot be. */
static bool
read_value(FieldKind kind, JsonText value, Datum *datum)
{
	const char *string = value.at + 1;
	int			len = json_is_string(value) ? value.len - 2 : 0;
	DateADT		date;
	int64		number;
	bool		boolean;

	switch (kind)
	{
		case FIELD_TEXT:
			*datum = read_text(value);
			return true;
		case FIELD_BOOLEAN:
			if (!json_boolean(value, &boolean))
				return false;
			*datum = BoolGetDatum(boolean);
			return true;
		case FIELD_DATE:
			if (!read_date(string, len, &date))
				return false;
			*datum = DateADTGetDatum(date);
			return true;
		case FIELD_TIMESTAMP:
			if (!read_timestamp(string, len, &number))
				return false;
			*datum = TimestampTzGetDatum(number);
			return true;
		case FIELD_JSON:
			*datum = JsonbPGetDatum(json_to_jsonb(value));
			return true;
		case FIELD_LINK:
			if (!read_link(value, &number))
				return false;
			*datum = Int64GetDatum(number);
			return true;
		case FIELD_IMPLIED:
			break;
	}
	return false;
}

/*
 * The number to call: the first mobile one, else the first. Cliniko's order is
 * not documented as meaningful, its types are.
 */
static bool
read_phone(JsonText numbers, Datum *datum)
{
	JsonText	first = {0};
	JsonText	entry;
	JsonText	number;
	JsonText	type;
	JsonWalk	walk;

	if (!json_is_array(numbers))
		return false;
	json_walk(numbers, &walk);
	while (json_next_element(&walk, &entry))
	{
		if (!json_find(entry, "number", &number) || !json_is_string(number) ||
			json_is_absent(number))
			continue;
		if (json_find(entry, "phone_type", &type) && json_equals(type, "Mobile"))
		{
			first = number;
			break;
		}
		if (first.len == 0)
			first = number;
	}
	if (first.len == 0)
		return false;
	*datum = read_text(first);
	return true;
}

/* Gather a member that no column is for. */
static void
add_extra(StringInfo extra, JsonText key, JsonText value)
{
	if (extra->data == NULL)
		initStringInfo(extra);
	appendStringInfoString(extra, extra->len == 0 ? "{" : ", ");
	appendBinaryStringInfo(extra, key.at, key.len);
	appendStringInfoString(extra, ": ");
	appendBinaryStringInfo(extra, value.at, value.len);
}

/*
 * Turn a record into a row. Absent values, which Cliniko sends as null, as ""
 * or not at all, become NULL. Where a value is impossible, row->bad_column
 * names its column.
 */
void
patient_read(const JsonObject *record, PatientRow *row)
{
	StringInfoData extra = {0};
	int			likely = 0;

	memset(row->nulls, true, sizeof(row->nulls));
	row->bad_column = NULL;
	for (int i = 0; i < record->nmembers; i++)
	{
		JsonText	key = json_key(record, i);
		JsonText	value = json_value(record, i);
		int			field = find_field(key, likely);

		likely = field + 1;
		if (field < 0)
		{
			add_extra(&extra, key, value);
			continue;
		}
		if (fields[field].kind == FIELD_IMPLIED || json_is_absent(value))
			continue;
		if (read_value(fields[field].kind, value, &row->values[field]))
			row->nulls[field] = false;
		else if (row->bad_column == NULL)
			row->bad_column = patient_column_name(field);
		if (strcmp(fields[field].key, "patient_phone_numbers") == 0)
			row->nulls[COLUMN_PHONE] = !read_phone(value, &row->values[COLUMN_PHONE]);
	}
	if (extra.len > 0)
	{
		appendStringInfoChar(&extra, '}');
		row->values[COLUMN_EXTRA] =
			JsonbPGetDatum(json_to_jsonb((JsonText) {extra.data, extra.len}));
		row->nulls[COLUMN_EXTRA] = false;
	}
}
