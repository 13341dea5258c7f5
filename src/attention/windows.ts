/**
 * Sliding windows by other names. A spec's `slidingWindow` is the number of keys a query sees, its own included; elsewhere the same
 * window is said with one less, and a copied number would be off by one in silence.
 */
import { requireInteger } from "../ops/attention/index.ts";
import { ArgumentError } from "../tensor/index.ts";

/** A window in the words of one project: exactly one of the fields. */
export type NamedWindow =
  /** FlashInfer: keys before the query that it sees, key >= position - windowLeft; -1 is no window. */
  | { readonly windowLeft: number }
  /** x-transformers: how far back a query attends; undefined is no window. */
  | { readonly maxAttendPast: number | undefined }
  /** Hugging Face's `sliding_window`, and JAX's: keys including the query's own; null is no window. */
  | { readonly slidingWindow: number | null | undefined };

/** `AttentionSpec.slidingWindow` for that window, undefined for none. Throws ArgumentError for a number that is no window. */
export function slidingWindowFrom(window: NamedWindow): number | undefined {
  const names = Object.keys(window);
  if (names.length !== 1) {
    throw new ArgumentError(
      `a window must have one of windowLeft, maxAttendPast and slidingWindow, got ${names.join(" and ") || "none"}`,
    );
  }
  if ("windowLeft" in window) {
    requireInteger("windowLeft", window.windowLeft, -1);
    return window.windowLeft === -1 ? undefined : window.windowLeft + 1;
  }
  if ("maxAttendPast" in window) {
    if (window.maxAttendPast === undefined) return undefined;
    requireInteger("maxAttendPast", window.maxAttendPast, 0);
    return window.maxAttendPast + 1;
  }
  if (window.slidingWindow === null || window.slidingWindow === undefined) return undefined;
  requireInteger("slidingWindow", window.slidingWindow, 1);
  return window.slidingWindow;
}
