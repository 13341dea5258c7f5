/**
 * Typed reading of loose key-value data (a config.json, GGUF metadata): a value of the wrong kind is an error that names file, key and value.
 */

import { FormatError } from "../../tensor/index.ts";

/** More layers than any model has. */
const MAX_LAYERS = 4096;

/** Keys of one config, with the prefix that errors show. null counts as absent, as in config.json. */
export class Fields {
  readonly label: string;
  readonly #prefix: string;
  readonly #lookup: (key: string) => unknown;

  /** `label` names the file; `prefix` is put before every key that is looked up. */
  constructor(label: string, lookup: (key: string) => unknown, prefix = "") {
    this.label = label;
    this.#lookup = lookup;
    this.#prefix = prefix;
  }

  /** The raw value; undefined if absent or null. */
  get(key: string): unknown {
    return this.#lookup(this.#prefix + key) ?? undefined;
  }

  /** A positive integer of at most `most`. Throws when it is absent and has no `fallback`. */
  size(key: string, fallback?: number, most = 2 ** 31): number {
    const value = this.get(key) ?? fallback;
    if (typeof value === "number" && Number.isInteger(value) && value >= 1 && value <= most) return value;
    throw this.error(key, value, `a positive integer of at most ${most}`);
  }

  /** The number of layers: bounded, because everything that follows makes one object a layer. */
  numLayers(key: string): number {
    return this.size(key, undefined, MAX_LAYERS);
  }

  /** A positive finite number. */
  positive(key: string, fallback?: number): number {
    const value = this.get(key) ?? fallback;
    if (typeof value === "number" && value > 0 && value < Infinity) return value;
    throw this.error(key, value, "a positive number");
  }

  /** A positive finite number, or undefined when absent. */
  optionalPositive(key: string): number | undefined {
    return this.get(key) === undefined ? undefined : this.positive(key);
  }

  boolean(key: string, fallback: boolean): boolean {
    const value = this.get(key) ?? fallback;
    if (typeof value === "boolean") return value;
    throw this.error(key, value, "true or false");
  }

  optionalBoolean(key: string): boolean | undefined {
    return this.get(key) === undefined ? undefined : this.boolean(key, false);
  }

  string(key: string, fallback?: string): string {
    const value = this.get(key) ?? fallback;
    if (typeof value === "string") return value;
    throw this.error(key, value, "a string");
  }

  /** A list of exactly `length` finite numbers. */
  numbers(key: string, length: number): number[] {
    const value = this.get(key);
    if (Array.isArray(value) && value.length === length && value.every((entry) => Number.isFinite(entry))) return value;
    throw this.error(key, value, `a list of ${length} numbers`);
  }

  /** One token id or a list of them, without repetition; empty when absent. */
  tokenIds(key: string): number[] {
    const value = this.get(key);
    const list: unknown[] = value === undefined ? [] : Array.isArray(value) ? value : [value];
    const ids: number[] = [];
    for (const id of list) {
      if (typeof id !== "number" || !Number.isInteger(id)) throw this.error(key, value, "a token id or a list of them");
      if (id >= 0 && !ids.includes(id)) ids.push(id); // some files write -1 for "none"
    }
    return ids;
  }

  /** The error for a value that is not `expected`. */
  error(key: string, value: unknown, expected: string): FormatError {
    const name = `${this.label}: ${this.#prefix}${key}`;
    if (value === undefined) return new FormatError(`${name} is missing: ${expected} is right`);
    const text = typeof value === "object" ? JSON.stringify(value) : String(value);
    return new FormatError(`${name} is ${text.length > 80 ? `${text.slice(0, 80)}...` : text}: ${expected} is right`);
  }
}
