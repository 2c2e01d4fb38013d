#!/usr/bin/python3
"""Syncs every patient of a Cliniko account into the table patients, one page after another.

Usage: CLINIKO_KEY=... sync.py [--row-by-row] API_URL ORGANIZATION DATABASE

What one would write without clinisync, with Debian's python3-requests and python3-psycopg2: 100 rows
a statement, or one with --row-by-row; a transaction a page. PGHOST and its like say where the server is.
"""

import os
import re
import sys
import time
from datetime import datetime, timezone

import psycopg2
import requests
from psycopg2.extras import Json, execute_values

CONTACT = "bench@clinic.example"
PER_PAGE = 100
TIMEOUT = 40

PLAIN = """
    title first_name last_name preferred_first_name label date_of_birth sex gender gender_identity email
    address_1 address_2 address_3 city state post_code country country_code time_zone occupation
    emergency_contact notes appointment_notes referral_source old_reference_id medicare
    medicare_reference_number dva_card_number invoice_default_to invoice_email invoice_extra_information
    reminder_type accepted_email_marketing accepted_privacy_policy accepted_sms_marketing
    receives_cancellation_emails receives_confirmation_emails merged_at archived_at created_at updated_at
""".split()
DOCUMENTS = ["pronouns", "patient_phone_numbers", "custom_fields"]
LINKS = ["concession_type", "referring_doctor", "latest_booking", "merged_with_patient"]
# Links to lists of what the patient has: they say no more than the patient's id does.
IMPLIED = """
    id links appointments attendees invoices medical_alerts patient_attachments relationships
""".split()
KNOWN = {*PLAIN, *DOCUMENTS, *LINKS, *IMPLIED, "deleted_at"}

COLUMNS = [
    "organization_id", "cliniko_patient_id",
    *PLAIN, *DOCUMENTS, *(f"{name}_id" for name in LINKS),
    "cliniko_deleted_at", "phone", "extra", "last_synced_at", "first_synced_at",
]
KEY = COLUMNS[:2]
UPDATED = [column for column in COLUMNS if column not in (*KEY, "first_synced_at")]
UPSERT = f"""
    INSERT INTO patients ({", ".join(COLUMNS)}) VALUES %s
    ON CONFLICT ({", ".join(KEY)})
    DO UPDATE SET {", ".join(f"{column} = excluded.{column}" for column in UPDATED)}
"""


def absent_as_none(value):
    return None if value == "" else value


def document(value):
    return None if value in (None, "") else Json(value)


def link_id(value):
    """The id that ends {"links": {"self": "https://.../contacts/123"}}."""
    return int(value["links"]["self"].rsplit("/", 1)[1]) if value else None


def phone(numbers):
    """The first mobile number, else the first number."""
    numbers = [entry for entry in numbers or [] if entry.get("number")]
    mobile = [entry for entry in numbers if entry.get("phone_type") == "Mobile"]
    return (mobile or numbers)[0]["number"] if numbers else None


def row(organization, patient, now):
    extra = {name: value for name, value in patient.items() if name not in KNOWN}
    return [
        organization,
        int(patient["id"]),
        *(absent_as_none(patient.get(name)) for name in PLAIN),
        *(document(patient.get(name)) for name in DOCUMENTS),
        *(link_id(patient.get(name)) for name in LINKS),
        absent_as_none(patient.get("deleted_at")),
        phone(patient.get("patient_phone_numbers")),
        Json(extra) if extra else None,
        now,
        now,
    ]


def pages(api_url, key):
    session = requests.Session()
    session.auth = (key, "")
    session.headers.update({"Accept": "application/json", "User-Agent": f"sync ({CONTACT})"})
    url = f"{api_url}/patients?per_page={PER_PAGE}&q%5B%5D=archived_at%3A*&sort=id"
    while url:
        response = session.get(url, timeout=TIMEOUT)
        response.raise_for_status()
        page = response.json()
        yield page["patients"]
        url = page["links"].get("next")


def sync(api_url, key, organization, database, rows_per_statement):
    stored = 0
    connection = psycopg2.connect(dbname=database)
    for patients in pages(api_url, key):
        now = datetime.now(timezone.utc)
        rows = [row(organization, patient, now) for patient in patients]
        with connection, connection.cursor() as cursor:
            execute_values(cursor, UPSERT, rows, page_size=rows_per_statement)
        stored += len(rows)
    connection.close()
    return stored


def peak_mb():
    # not getrusage(), which remembers who started us
    with open("/proc/self/status", encoding="utf-8") as status:
        return int(re.search(r"^VmHWM:\s+(\d+) kB", status.read(), re.MULTILINE)[1]) / 1024


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--row-by-row"]
    rows_per_statement = 1 if "--row-by-row" in sys.argv else PER_PAGE
    if len(arguments) != 3:
        sys.exit(__doc__)
    api_url, organization, database = arguments
    start, cpu_start = time.perf_counter(), time.process_time()
    stored = sync(api_url, os.environ["CLINIKO_KEY"], organization, database, rows_per_statement)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    print(f"{stored} patients in {seconds:.3f} s, {cpu:.3f} s of it at work, {peak_mb():.1f} MB at most")


if __name__ == "__main__":
    main()
