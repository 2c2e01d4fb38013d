// The two ways in which a request can be wrong: by Cliniko's rules, or by the control interface's.
// It must never hold anything but these.

/** An API request that is refused: the status and message, and the documented rule it broke (null: none). */
export class Refusal extends Error {
  constructor(status, message, rule) {
    super(message);
    this.status = status;
    this.rule = rule;
  }
}

/** A control request that makes no sense. */
export class ControlError extends Error {
  constructor(message, status = 400) {
    super(message);
    this.status = status;
  }
}
