/**
 * Kernel part: registers of channels decoded where they lie in a page, for the storages that few instructions decode. The others, and what
 * these get wrong, go through rowDecoders.ts.
 */
import { bf16ToF32, type KernelBuilder, type Value } from "../../kernels/index.ts";
import type { PageStorage } from "./storage.ts";

type Address = Value<"i32">;
type Int = Value<"i32">;

/** A register of channels. */
export type Lanes = Value<"f32v">;

/** How registers of channels are read where they lie. */
export interface DirectDecoder {
  readonly elementBytes: number;
  /** What the decoded numbers are too small by: a power of two. */
  readonly gain: number;
  /** The register of channels at a byte offset from an address. */
  decode(address: Address, offset: number): Lanes;
  /** Collects whether rows have elements that `decode` gets wrong; undefined where it gets all right. */
  readonly findSpecial?: () => SpecialFinder;
}

export interface SpecialFinder {
  /** Looks at the register of bytes at a byte offset from an address. */
  look(address: Address, offset: number): void;
  isFound(): Int;
}

/** The decoder of a storage, its constants set up outside of all loops; undefined where decoding takes more than a few instructions. */
export function directDecoder(k: KernelBuilder, storage: PageStorage): DirectDecoder | undefined {
  if (storage === "f32") return { elementBytes: 4, gain: 1, decode: (at, offset) => k.let(k.load("f32v", at, offset)) };
  if (storage === "bf16") {
    return { elementBytes: 2, gain: 1, decode: (at, offset) => k.let(bf16ToF32(k.load("u16 to i32v", at, offset))) };
  }
  if (storage !== "f16") return undefined;
  // A half's bits moved to the place of an f32's are its value times 2^-112; widening repeats the sign, whose copies are cleared.
  const signAndBits = k.let(k.all("i32v", 0x8fffe000 | 0));
  const magnitudeBits = k.let(k.all("i32v", 0x7fff7fff));
  return {
    elementBytes: 2,
    gain: 2 ** 112,
    decode: (at, offset) => k.let(k.load("i16 to i32v", at, offset).shl(13).and(signAndBits).as("f32v")),
    findSpecial() {
      // The largest magnitude as an integer: infinities and NaN have all exponent bits.
      const largest = k.var("i16v", k.all("i16v", 0));
      return {
        look(at, offset) {
          const magnitudes = k.load("i32v", at, offset).and(magnitudeBits);
          largest.set(largest.value.max(magnitudes.as("i16v")));
        },
        isFound: () =>
          largest.value.as("i32v").and(0xffff).gt(0x7bff).or(largest.value.as("i32v").shrU(16).gt(0x7bff)).anyTrue(),
      };
    },
  };
}
