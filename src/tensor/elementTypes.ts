/** The types of single tensor elements and their sizes. Block-quantised weights are not element types: see weightTypes.ts. */

/** Type of one element. `f8e4m3` is the finite variant (largest value 448, no infinity), `f8e5m2` the IEEE-like one. */
export type ElementType =
  | "f64"
  | "f32"
  | "f16"
  | "bf16"
  | "f8e4m3"
  | "f8e5m2"
  | "i32"
  | "u32"
  | "i16"
  | "u16"
  | "i8"
  | "u8";

const BYTES: Readonly<Record<ElementType, number>> = {
  f64: 8,
  f32: 4,
  f16: 2,
  bf16: 2,
  f8e4m3: 1,
  f8e5m2: 1,
  i32: 4,
  u32: 4,
  i16: 2,
  u16: 2,
  i8: 1,
  u8: 1,
};

/** Every element type, widest first. */
export const elementTypes = Object.keys(BYTES) as readonly ElementType[]; // Object.keys forgets the key type

/** Bytes of one element of `type`. */
export function elementBytes(type: ElementType): number {
  return BYTES[type];
}
