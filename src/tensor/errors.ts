/**
 * The errors Kvasir throws. One class for each kind of mistake, so that a caller can tell a bad file from a bad argument; the messages are
 * written where the mistake is seen, and name the argument, its value and what would be right.
 */

/** Base of every error that Kvasir throws on purpose. */
export class KvasirError extends Error {
  override readonly name: string = "KvasirError";
}

/** A tensor or array has another shape or length than its contract asks for. */
export class ShapeError extends KvasirError {
  override readonly name: string = "ShapeError";
}

/** An argument or option has a value that is not allowed. */
export class ArgumentError extends KvasirError {
  override readonly name: string = "ArgumentError";
}

/** A file is malformed, truncated, or of a kind that is not supported. */
export class FormatError extends KvasirError {
  override readonly name: string = "FormatError";
}

/** A device failed or cannot do what was asked of it. */
export class DeviceError extends KvasirError {
  override readonly name: string = "DeviceError";
}

/** A request does not fit: memory, pages or tokens. */
export class CapacityError extends KvasirError {
  override readonly name: string = "CapacityError";
}
