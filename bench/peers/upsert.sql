/*
 * Patients from pages that are in a table already, as the bodies of answers
 * that something else has fetched: what SQL alone can do, without any network.
 * One statement and one transaction a page.
 */

CREATE TABLE pages (number int PRIMARY KEY, body text NOT NULL);

CREATE PROCEDURE upsert_pages(organization text)
LANGUAGE plpgsql
AS $$
DECLARE
	/* links to lists of what the patient has say no more than its id does */
	known CONSTANT text[] = '{
		accepted_email_marketing, accepted_privacy_policy, accepted_sms_marketing, address_1, address_2,
		address_3, appointment_notes, appointments, archived_at, attendees, city, concession_type, country,
		country_code, created_at, custom_fields, date_of_birth, deleted_at, dva_card_number, email,
		emergency_contact, first_name, gender, gender_identity, id, invoice_default_to, invoice_email,
		invoice_extra_information, invoices, label, last_name, latest_booking, links, medical_alerts,
		medicare, medicare_reference_number, merged_at, merged_with_patient, notes, occupation,
		old_reference_id, patient_attachments, patient_phone_numbers, post_code, preferred_first_name,
		pronouns, receives_cancellation_emails, receives_confirmation_emails, referral_source,
		referring_doctor, relationships, reminder_type, sex, state, time_zone, title, updated_at}';
	/* the id that ends a link */
	last_number CONSTANT text = '[0-9]+$';
	page record;
BEGIN
	FOR page IN SELECT p.body::jsonb -> 'patients' AS patients FROM pages p ORDER BY p.number LOOP
		INSERT INTO patients (
			organization_id, cliniko_patient_id, title, first_name, last_name, preferred_first_name, label,
			pronouns, date_of_birth, sex, gender, gender_identity, email, phone, patient_phone_numbers,
			address_1, address_2, address_3, city, state, post_code, country, country_code, time_zone,
			occupation, emergency_contact, notes, appointment_notes, referral_source, old_reference_id,
			medicare, medicare_reference_number, dva_card_number, invoice_default_to, invoice_email,
			invoice_extra_information, reminder_type, accepted_email_marketing, accepted_privacy_policy,
			accepted_sms_marketing, receives_cancellation_emails, receives_confirmation_emails,
			custom_fields, concession_type_id, referring_doctor_id, latest_booking_id,
			merged_with_patient_id, merged_at, archived_at, cliniko_deleted_at, created_at, updated_at,
			extra, first_synced_at, last_synced_at)
		SELECT
			organization, r.id, nullif(r.title, ''), nullif(r.first_name, ''), nullif(r.last_name, ''),
			nullif(r.preferred_first_name, ''), nullif(r.label, ''), r.pronouns,
			nullif(r.date_of_birth, '')::date, nullif(r.sex, ''), nullif(r.gender, ''),
			nullif(r.gender_identity, ''), nullif(r.email, ''),
			/* the first mobile number, else the first number */
			(SELECT n.entry ->> 'number'
			 FROM jsonb_array_elements(r.patient_phone_numbers) WITH ORDINALITY AS n (entry, place)
			 WHERE n.entry ->> 'number' <> ''
			 ORDER BY n.entry ->> 'phone_type' IS NOT DISTINCT FROM 'Mobile' DESC, n.place
			 LIMIT 1),
			r.patient_phone_numbers, nullif(r.address_1, ''), nullif(r.address_2, ''),
			nullif(r.address_3, ''), nullif(r.city, ''), nullif(r.state, ''), nullif(r.post_code, ''),
			nullif(r.country, ''), nullif(r.country_code, ''), nullif(r.time_zone, ''),
			nullif(r.occupation, ''), nullif(r.emergency_contact, ''), nullif(r.notes, ''),
			nullif(r.appointment_notes, ''), nullif(r.referral_source, ''), nullif(r.old_reference_id, ''),
			nullif(r.medicare, ''), nullif(r.medicare_reference_number, ''), nullif(r.dva_card_number, ''),
			nullif(r.invoice_default_to, ''), nullif(r.invoice_email, ''),
			nullif(r.invoice_extra_information, ''), nullif(r.reminder_type, ''),
			r.accepted_email_marketing, r.accepted_privacy_policy, r.accepted_sms_marketing,
			r.receives_cancellation_emails, r.receives_confirmation_emails, r.custom_fields,
			substring(r.concession_type #>> '{links,self}', last_number)::bigint,
			substring(r.referring_doctor #>> '{links,self}', last_number)::bigint,
			substring(r.latest_booking #>> '{links,self}', last_number)::bigint,
			substring(r.merged_with_patient #>> '{links,self}', last_number)::bigint,
			nullif(r.merged_at, '')::timestamptz, nullif(r.archived_at, '')::timestamptz,
			nullif(r.deleted_at, '')::timestamptz, nullif(r.created_at, '')::timestamptz,
			nullif(r.updated_at, '')::timestamptz, nullif(r.value - known, '{}'), now(), now()
		FROM ROWS FROM (
			jsonb_to_recordset(page.patients) AS (
				id bigint, title text, first_name text, last_name text, preferred_first_name text,
				label text, pronouns jsonb, date_of_birth text, sex text, gender text,
				gender_identity text, email text, patient_phone_numbers jsonb, address_1 text,
				address_2 text, address_3 text, city text, state text, post_code text, country text,
				country_code text, time_zone text, occupation text, emergency_contact text, notes text,
				appointment_notes text, referral_source text, old_reference_id text, medicare text,
				medicare_reference_number text, dva_card_number text, invoice_default_to text,
				invoice_email text, invoice_extra_information text, reminder_type text,
				accepted_email_marketing boolean, accepted_privacy_policy boolean,
				accepted_sms_marketing boolean, receives_cancellation_emails boolean,
				receives_confirmation_emails boolean, custom_fields jsonb, concession_type jsonb,
				referring_doctor jsonb, latest_booking jsonb, merged_with_patient jsonb,
				merged_at text, archived_at text, deleted_at text, created_at text, updated_at text),
			jsonb_array_elements(page.patients)
		) AS r
		ON CONFLICT (organization_id, cliniko_patient_id) DO UPDATE SET
			title = excluded.title, first_name = excluded.first_name, last_name = excluded.last_name,
			preferred_first_name = excluded.preferred_first_name, label = excluded.label,
			pronouns = excluded.pronouns, date_of_birth = excluded.date_of_birth, sex = excluded.sex,
			gender = excluded.gender, gender_identity = excluded.gender_identity, email = excluded.email,
			phone = excluded.phone, patient_phone_numbers = excluded.patient_phone_numbers,
			address_1 = excluded.address_1, address_2 = excluded.address_2, address_3 = excluded.address_3,
			city = excluded.city, state = excluded.state, post_code = excluded.post_code,
			country = excluded.country, country_code = excluded.country_code,
			time_zone = excluded.time_zone, occupation = excluded.occupation,
			emergency_contact = excluded.emergency_contact, notes = excluded.notes,
			appointment_notes = excluded.appointment_notes, referral_source = excluded.referral_source,
			old_reference_id = excluded.old_reference_id, medicare = excluded.medicare,
			medicare_reference_number = excluded.medicare_reference_number,
			dva_card_number = excluded.dva_card_number, invoice_default_to = excluded.invoice_default_to,
			invoice_email = excluded.invoice_email,
			invoice_extra_information = excluded.invoice_extra_information,
			reminder_type = excluded.reminder_type,
			accepted_email_marketing = excluded.accepted_email_marketing,
			accepted_privacy_policy = excluded.accepted_privacy_policy,
			accepted_sms_marketing = excluded.accepted_sms_marketing,
			receives_cancellation_emails = excluded.receives_cancellation_emails,
			receives_confirmation_emails = excluded.receives_confirmation_emails,
			custom_fields = excluded.custom_fields, concession_type_id = excluded.concession_type_id,
			referring_doctor_id = excluded.referring_doctor_id,
			latest_booking_id = excluded.latest_booking_id,
			merged_with_patient_id = excluded.merged_with_patient_id, merged_at = excluded.merged_at,
			archived_at = excluded.archived_at, cliniko_deleted_at = excluded.cliniko_deleted_at,
			created_at = excluded.created_at, updated_at = excluded.updated_at, extra = excluded.extra,
			last_synced_at = excluded.last_synced_at;
		COMMIT;
	END LOOP;
END
$$;
