import type { Organization } from '../api';

interface ClinicChooserProps {
  organizations: Organization[];
  chosen: string;
  onChoose: (organization: string) => void;
}

export function nameOf({ name, organization_id }: Organization): string {
  return name ?? organization_id;
}

/** Chooses among the clinics that the token allows; where there is one, it is simply named. */
export function ClinicChooser({ organizations, chosen, onChoose }: ClinicChooserProps) {
  const [only, ...others] = organizations;
  if (only !== undefined && others.length === 0) return <p className="clinic">{nameOf(only)}</p>;
  return (
    <div className="chooser">
      <label htmlFor="clinic">Clinic</label>
      <select id="clinic" value={chosen} onChange={(event) => onChoose(event.target.value)}>
        {organizations.map((organization) => (
          <option key={organization.organization_id} value={organization.organization_id}>
            {nameOf(organization)}
          </option>
        ))}
      </select>
    </div>
  );
}
