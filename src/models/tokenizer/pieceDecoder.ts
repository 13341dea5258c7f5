/**
 * The `decoder` of tokenizer.json, as a function from a piece to the bytes it stands for: what streaming needs, since a decoder that
 * works on the whole text cannot run on half of it.
 */

import { FormatError } from "../../tensor/errors.ts";
import { byteLevelBytes } from "./byteLevel.ts";
import type { InvalidBytes } from "./utf8Decoder.ts";

/** Bytes of pieces, and what of decoding needs more than one piece. */
export interface PieceDecoder {
  bytesOf(piece: string): Uint8Array;
  /** Whether there can be byte tokens at all. */
  readonly hasByteTokens: boolean;
  /** Whether the piece is one like <0x0A>. */
  isByteToken(piece: string): boolean;
  readonly invalidBytes: InvalidBytes;
  /** A space at the very start of a text was put there by encoding. */
  readonly dropsLeadingSpace: boolean;
}

/** One step of a decoder after JSON.parse. */
interface DecoderStep {
  readonly type?: unknown;
  readonly decoders?: unknown;
  readonly pattern?: { readonly String?: unknown } | null;
  readonly content?: unknown;
  readonly start?: unknown;
  readonly stop?: unknown;
  readonly replacement?: unknown;
  readonly prepend_scheme?: unknown;
  readonly add_prefix_space?: unknown;
}

/** Reads a decoder. Throws FormatError naming the step for one that does not work piece by piece. */
export function parsePieceDecoder(json: object | null | undefined): PieceDecoder {
  if (json === null || json === undefined) {
    throw new FormatError("tokenizer.json has no decoder: there is no telling what text its pieces stand for");
  }
  const steps = flatten(json);
  const encoder = new TextEncoder();
  const replacements: [string, string][] = [];
  let isByteLevel = false;
  let hasByteTokens = false;
  let dropsLeadingSpace = false;
  for (const step of steps) {
    if (step.type === "ByteLevel") isByteLevel = true;
    else if (step.type === "ByteFallback") hasByteTokens = true;
    else if (step.type === "Metaspace") {
      replacements.push([typeof step.replacement === "string" ? step.replacement : "\u2581", " "]);
      dropsLeadingSpace = step.prepend_scheme !== "never" && step.add_prefix_space !== false;
    } else if (
      step.type === "Replace" &&
      typeof step.pattern?.String === "string" &&
      typeof step.content === "string"
    ) {
      replacements.push([step.pattern.String, step.content]);
    } else if (step.type === "Strip" && step.content === " " && step.start === 1 && step.stop === 0) {
      dropsLeadingSpace = true;
    } else if (step.type !== "Fuse") {
      throw new FormatError(`tokenizer.json has a decoder step that is not supported: ${JSON.stringify(step)}`);
    }
  }
  const isByteToken = (piece: string): boolean => hasByteTokens && /^<0x[0-9A-Fa-f]{2}>$/.test(piece);
  const bytesOf = (piece: string): Uint8Array => {
    if (isByteLevel) return byteLevelBytes(piece) ?? encoder.encode(piece);
    if (isByteToken(piece)) return Uint8Array.of(Number.parseInt(piece.slice(3, 5), 16));
    return encoder.encode(replacements.reduce((text, [from, to]) => text.replaceAll(from, to), piece));
  };
  return {
    bytesOf,
    hasByteTokens,
    isByteToken,
    invalidBytes: isByteLevel ? "perSequence" : "perRun",
    dropsLeadingSpace,
  };
}

/** The steps of nested sequences in order. */
function flatten(step: DecoderStep): DecoderStep[] {
  return step.type === "Sequence" && Array.isArray(step.decoders) ? step.decoders.flatMap(flatten) : [step];
}
