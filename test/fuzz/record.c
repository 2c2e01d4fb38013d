/*
 * record.c
 *		Fuzz target: one patient of a page, turned into a row.
 *
 * What patient.c makes of a record is compared with what PostgreSQL's jsonb
 * and its types make of it, as far as the two have to agree: a record whose
 * keys are unique and written without escapes.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "fuzz.h"
#include "patient.h"

/* Whether jsonb says the same of a record as a walk through it. */
static bool
is_comparable(JsonText record, Jsonb *all)
{
	JsonWalk	walk;
	JsonText	key;
	JsonText	value;
	int			members = 0;

	json_walk(record, &walk);
	while (json_next_member(&walk, &key, &value))
	{
		if (memchr(key.at, '\\', key.len) != NULL)
			return false;
		members++;
	}
	demand(JB_ROOT_IS_OBJECT(all));
	/* json.c takes no more of them to be a record's */
	return JB_ROOT_COUNT(all) == members && members < 1024;
}

/* Read a moment or a date as PostgreSQL does. Answers false where it cannot. */
static bool
read_as_postgresql(Oid type, char *text, Datum *datum)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool taken = false;

	PG_TRY();
	{
		*datum = type == DATEOID
			? DirectFunctionCall1(date_in, CStringGetDatum(text))
			: DirectFunctionCall3(timestamptz_in, CStringGetDatum(text),
								  ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
		taken = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
	return taken;
}

/* A date or a moment that was read has to be what PostgreSQL reads. */
static void
check_time(Oid type, Datum datum, const JsonbValue *value)
{
	Datum		expected = (Datum) 0;
	char	   *text;

	demand(value->type == jbvString);
	text = pnstrdup(value->val.string.val, value->val.string.len);
	if (!read_as_postgresql(type, text, &expected))
	{
		/* PostgreSQL knows no fractions of a leap second, and no endless ones */
		demand(strstr(text, ":60.") != NULL || strlen(text) > MAXDATELEN);
		return;
	}
	/* ours drops what is less than a microsecond, PostgreSQL rounds it */
	if (type == DATEOID)
		demand(DatumGetDateADT(datum) == DatumGetDateADT(expected));
	else
	{
		TimestampTz error = DatumGetTimestampTz(datum) - DatumGetTimestampTz(expected);

		demand(error >= -1 && error <= 1);
	}
}

/* How long a jsonb value is where it is written out. */
static size_t
written_length(Jsonb *json)
{
	return strlen(JsonbToCString(NULL, &json->root, VARSIZE(json)));
}

static size_t
written_number_length(Numeric number)
{
	return strlen(DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(number))));
}

/* No number of a value is longer than it may be. */
static void
check_jsonb(Jsonb *json)
{
	JsonbIterator *walk = JsonbIteratorInit(&json->root);
	JsonbIteratorToken token;
	JsonbValue	value;

	while ((token = JsonbIteratorNext(&walk, &value, false)) != WJB_DONE)
	{
		if ((token == WJB_VALUE || token == WJB_ELEM) && value.type == jbvNumeric)
			demand(written_number_length(value.val.numeric) <= JSON_MAX_NUMBER_LENGTH);
	}
}

/* A number that was made a string means the same, and would be too long, or was not said plainly. */
static void
check_mended(const JsonbValue *string, const JsonbValue *number)
{
	char	   *sent = pnstrdup(string->val.string.val, string->val.string.len);
	Datum		meant = DirectFunctionCall3(numeric_in, CStringGetDatum(sent),
											ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));

	demand(DatumGetBool(DirectFunctionCall2(numeric_eq, meant,
											NumericGetDatum(number->val.numeric))));
	demand(strlen(sent) > JSON_MAX_NUMBER_LENGTH || strpbrk(sent, "eE") != NULL);
}

/* What is made of a text is what jsonb_in makes of it, but for numbers that are too long. */
static void
check_like_theirs(Jsonb *ours, Jsonb *theirs)
{
	JsonbIterator *our_walk = JsonbIteratorInit(&ours->root);
	JsonbIterator *their_walk = JsonbIteratorInit(&theirs->root);
	JsonbIteratorToken token;
	JsonbValue	our_value;
	JsonbValue	their_value;
	bool		mended = false;

	while ((token = JsonbIteratorNext(&our_walk, &our_value, false)) != WJB_DONE)
	{
		demand(JsonbIteratorNext(&their_walk, &their_value, false) == token);
		if ((token == WJB_VALUE || token == WJB_ELEM) &&
			our_value.type == jbvString && their_value.type == jbvNumeric)
		{
			check_mended(&our_value, &their_value);
			mended = true;
		}
	}
	demand(mended || datumIsEqual(JsonbPGetDatum(ours), JsonbPGetDatum(theirs), false, -1));
}

/* What holds for a value whatever the record was. */
static void
check_alone(Oid type, Datum datum)
{
	switch (type)
	{
		case TEXTOID:
			demand(pg_verify_mbstr(PG_UTF8, VARDATA_ANY(DatumGetPointer(datum)),
								   VARSIZE_ANY_EXHDR(DatumGetPointer(datum)), true));
			break;
		case JSONBOID:
			check_jsonb(DatumGetJsonbP(datum));
			break;
		case INT8OID:
			demand(DatumGetInt64(datum) >= 0);
			break;
		case DATEOID:
			demand(IS_VALID_DATE(DatumGetDateADT(datum)));
			break;
		case TIMESTAMPTZOID:
			demand(IS_VALID_TIMESTAMP(DatumGetTimestampTz(datum)));
			break;
	}
}

/* Compare a column with what jsonb has under its field's key; NULL: nothing. */
static void
check_column(const PatientRow *row, int column, JsonbValue *value)
{
	Oid			type = patient_column_type(column);
	Datum		datum = row->values[column];

	if (value == NULL || value->type == jbvNull ||
		(value->type == jbvString && value->val.string.len == 0))
	{
		demand(row->nulls[column]);
		return;
	}
	if (row->nulls[column])
	{
		/* any text and any JSON can be stored */
		demand(row->bad_column != NULL && type != TEXTOID && type != JSONBOID);
		return;
	}
	switch (type)
	{
		case TEXTOID:
			if (value->type == jbvString)
			{
				struct varlena *stored = (struct varlena *) DatumGetPointer(datum);

				demand(VARSIZE_ANY_EXHDR(stored) == value->val.string.len);
				demand(memcmp(VARDATA_ANY(stored), value->val.string.val,
							  value->val.string.len) == 0);
			}
			break;
		case BOOLOID:
			demand(value->type == jbvBool && value->val.boolean == DatumGetBool(datum));
			break;
		case JSONBOID:
			demand(DatumGetBool(DirectFunctionCall2(jsonb_eq, datum,
													JsonbPGetDatum(JsonbValueToJsonb(value)))));
			break;
		case DATEOID:
		case TIMESTAMPTZOID:
			check_time(type, datum, value);
			break;
	}
}

/* Compare a row with the record's jsonb. */
static void
check_row(const PatientRow *row, Jsonb *all)
{
	for (int i = 0; i < patient_column_count(); i++)
	{
		const char *name = patient_column_name(i);

		if (name == NULL || strcmp(name, "phone") == 0 || patient_column_type(i) == INT8OID)
			continue;
		if (strcmp(name, "extra") == 0)
		{
			demand(row->nulls[i] ||
				   DatumGetBool(DirectFunctionCall2(jsonb_contains, JsonbPGetDatum(all),
													row->values[i])));
			continue;
		}
		if (strcmp(name, "cliniko_deleted_at") == 0)
			name = "deleted_at";
		check_column(row, i, getKeyJsonValueFromContainer(&all->root, name, strlen(name), NULL));
	}
}

/* The same record is the same row, wherever it stands. */
static void
check_same(const PatientRow *row, const PatientRow *again)
{
	demand(row->bad_column == again->bad_column);
	for (int i = 0; i < patient_column_count(); i++)
	{
		Oid			type = patient_column_type(i);
		bool		by_value = type != TEXTOID && type != JSONBOID;

		demand(row->nulls[i] == again->nulls[i]);
		demand(row->nulls[i] || datumIsEqual(row->values[i], again->values[i],
											 by_value, by_value ? sizeof(Datum) : -1));
	}
}

/* What jsonb_in makes of a text; NULL where it does not take it. */
static Jsonb *
read_jsonb(JsonText value)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *text = pnstrdup(value.at, value.len);
	Jsonb	   *volatile json = NULL;

	PG_TRY();
	{
		json = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
	return json;
}

/* Hash and read a record as batch.c does. */
void
check_record(const JsonObject *record)
{
	/* a record ends with its bracket, and nothing may look further */
	char	   *copy = malloc(record->text.len);
	JsonText	text = {memcpy(copy, record->text.at, record->text.len), record->text.len};
	JsonReader	reader;
	JsonObject	moved;
	PatientRow	row;
	PatientRow	again;
	Jsonb	   *all;
	Jsonb	   *theirs;

	json_read(&reader, text.at, text.len);
	demand(json_read_object(&reader, &moved) && json_read_end(&reader));
	demand(moved.text.at == text.at && moved.text.len == text.len);
	demand(patient_hash(record) == patient_hash(&moved));
	patient_read(record, &row);
	patient_read(&moved, &again);
	check_same(&row, &again);
	for (int i = 0; i < patient_column_count(); i++)
	{
		demand(row.nulls[i] || patient_column_name(i) != NULL);
		if (!row.nulls[i])
			check_alone(patient_column_type(i), row.values[i]);
	}
	/* whatever is stored can be read again */
	all = json_to_jsonb(text);
	demand(written_length(all) <= (size_t) text.len * JSON_MAX_GROWTH);
	/* jsonb_in takes less */
	theirs = read_jsonb(text);
	if (theirs != NULL)
		check_like_theirs(all, theirs);
	if (is_comparable(text, all))
		check_row(&row, all);
	free(copy);
}

/* The input is what stands for the only patient of a page. */
void
fuzz_record(const char *data, size_t size)
{
	StringInfoData body;

	initStringInfo(&body);
	appendStringInfoString(&body, "{\"patients\": [");
	appendBinaryStringInfo(&body, data, size);
	appendStringInfoString(&body, "], \"total_entries\": 1}");
	fuzz_page(body.data, body.len);
}
