/**
 * The operations of the kernel language, with their types. A back end has one entry for each name.
 *
 * Meaning, where the name does not say it (integers wrap around):
 * - `div`, `rem` and `divU` toward zero. Division by zero, and of the least i32 by -1, stops the kernel or worse: a kernel avoids them.
 * - `shl`, `shr`, `shrU`: one count for all lanes, from 0 to the width of a lane less 1.
 * - `fma(a, b, c)` is a * b + c, fused where the target fuses (a target does one or the other everywhere).
 * - `min(a, b)` is b < a ? b : a and `max(a, b)` is a < b ? b : a, so that NaN in `a` stays and no target pays for more.
 * - `dotPairs(a, b)`: i16v x i16v -> i32v, lane i = a[2i] b[2i] + a[2i+1] b[2i+1].
 * - `dotPairsU7(a, b)`: i8v x i8v -> i16v, the same for bytes; b's bytes must be 0..127, with which no sum leaves 16 bits.
 * - `pairAdd(a, b)`: sums of neighbouring lanes, a's first, then b's (of i32v or f32v).
 * - `widenLow/High`: the lower or upper half of the lanes, sign-extended; `widenLowU/HighU` zero-extended.
 * - `narrow(a, b)`: the lanes of a, then of b, saturated to half the width (signed).
 * - `lookup16(table, index)`: table[index] for each byte, index 0..15.
 * - `select(mask, a, b)`: lanes of a where the mask's lane is -1, of b where it is 0; other masks mean nothing. Scalars: a if the
 *   i32 is not 0.
 * - `truncate`: f32 to i32 toward zero, saturating, NaN to 0; `nearest` rounds to even.
 * - `anyTrue`: 1 if any bit is set, else 0.
 */

import type { ValueType } from "./tree.ts";

type Signature = readonly [args: readonly ValueType[], result: ValueType];

const binary = <T extends ValueType>(type: T): Signature => [[type, type], type];
const unary = <T extends ValueType>(type: T): Signature => [[type], type];
const compare = (type: ValueType, result: ValueType): Signature => [[type, type], result];

const signatureTable = {
  "i32.add": binary("i32"),
  "i32.sub": binary("i32"),
  "i32.mul": binary("i32"),
  "i32.div": binary("i32"),
  "i32.divU": binary("i32"),
  "i32.rem": binary("i32"),
  "i32.and": binary("i32"),
  "i32.or": binary("i32"),
  "i32.xor": binary("i32"),
  "i32.shl": binary("i32"),
  "i32.shr": binary("i32"),
  "i32.shrU": binary("i32"),
  "i32.eq": compare("i32", "i32"),
  "i32.ne": compare("i32", "i32"),
  "i32.lt": compare("i32", "i32"),
  "i32.ltU": compare("i32", "i32"),
  "i32.le": compare("i32", "i32"),
  "i32.gt": compare("i32", "i32"),
  "i32.ge": compare("i32", "i32"),
  "i32.select": [["i32", "i32", "i32"], "i32"],
  "i32.toF32": [["i32"], "f32"],
  "i32.asF32": [["i32"], "f32"],

  "f32.add": binary("f32"),
  "f32.sub": binary("f32"),
  "f32.mul": binary("f32"),
  "f32.div": binary("f32"),
  "f32.min": binary("f32"),
  "f32.max": binary("f32"),
  "f32.neg": unary("f32"),
  "f32.abs": unary("f32"),
  "f32.sqrt": unary("f32"),
  "f32.floor": unary("f32"),
  "f32.nearest": unary("f32"),
  "f32.eq": compare("f32", "i32"),
  "f32.ne": compare("f32", "i32"),
  "f32.lt": compare("f32", "i32"),
  "f32.le": compare("f32", "i32"),
  "f32.gt": compare("f32", "i32"),
  "f32.ge": compare("f32", "i32"),
  "f32.select": [["i32", "f32", "f32"], "f32"],
  "f32.truncate": [["f32"], "i32"],
  "f32.asI32": [["f32"], "i32"],

  "f32v.splat": [["f32"], "f32v"],
  "f32v.add": binary("f32v"),
  "f32v.sub": binary("f32v"),
  "f32v.mul": binary("f32v"),
  "f32v.div": binary("f32v"),
  "f32v.min": binary("f32v"),
  "f32v.max": binary("f32v"),
  "f32v.neg": unary("f32v"),
  "f32v.abs": unary("f32v"),
  "f32v.sqrt": unary("f32v"),
  "f32v.floor": unary("f32v"),
  "f32v.nearest": unary("f32v"),
  "f32v.fma": [["f32v", "f32v", "f32v"], "f32v"],
  "f32v.eq": compare("f32v", "i32v"),
  "f32v.ne": compare("f32v", "i32v"),
  "f32v.lt": compare("f32v", "i32v"),
  "f32v.le": compare("f32v", "i32v"),
  "f32v.gt": compare("f32v", "i32v"),
  "f32v.ge": compare("f32v", "i32v"),
  "f32v.select": [["i32v", "f32v", "f32v"], "f32v"],
  "f32v.pairAdd": binary("f32v"),
  "f32v.truncate": [["f32v"], "i32v"],

  "i32v.splat": [["i32"], "i32v"],
  "i32v.add": binary("i32v"),
  "i32v.sub": binary("i32v"),
  "i32v.mul": binary("i32v"),
  "i32v.and": binary("i32v"),
  "i32v.or": binary("i32v"),
  "i32v.xor": binary("i32v"),
  "i32v.min": binary("i32v"),
  "i32v.max": binary("i32v"),
  "i32v.shl": [["i32v", "i32"], "i32v"],
  "i32v.shr": [["i32v", "i32"], "i32v"],
  "i32v.shrU": [["i32v", "i32"], "i32v"],
  "i32v.eq": compare("i32v", "i32v"),
  "i32v.ne": compare("i32v", "i32v"),
  "i32v.lt": compare("i32v", "i32v"),
  "i32v.le": compare("i32v", "i32v"),
  "i32v.gt": compare("i32v", "i32v"),
  "i32v.ge": compare("i32v", "i32v"),
  "i32v.select": [["i32v", "i32v", "i32v"], "i32v"],
  "i32v.pairAdd": binary("i32v"),
  "i32v.toF32": [["i32v"], "f32v"],
  "i32v.anyTrue": [["i32v"], "i32"],
  "i32v.narrow": [["i32v", "i32v"], "i16v"],

  "i16v.splat": [["i32"], "i16v"],
  "i16v.add": binary("i16v"),
  "i16v.sub": binary("i16v"),
  "i16v.mul": binary("i16v"),
  "i16v.max": binary("i16v"),
  "i16v.shl": [["i16v", "i32"], "i16v"],
  "i16v.shr": [["i16v", "i32"], "i16v"],
  "i16v.shrU": [["i16v", "i32"], "i16v"],
  "i16v.widenLow": [["i16v"], "i32v"],
  "i16v.widenHigh": [["i16v"], "i32v"],
  "i16v.widenLowU": [["i16v"], "i32v"],
  "i16v.widenHighU": [["i16v"], "i32v"],
  "i16v.narrow": [["i16v", "i16v"], "i8v"],
  "i16v.dotPairs": [["i16v", "i16v"], "i32v"],

  "i8v.splat": [["i32"], "i8v"],
  "i8v.add": binary("i8v"),
  "i8v.sub": binary("i8v"),
  "i8v.and": binary("i8v"),
  "i8v.or": binary("i8v"),
  "i8v.xor": binary("i8v"),
  "i8v.widenLow": [["i8v"], "i16v"],
  "i8v.widenHigh": [["i8v"], "i16v"],
  "i8v.lookup16": binary("i8v"),
  "i8v.dotPairsU7": [["i8v", "i8v"], "i16v"],

  /** The same bits seen as another vector type. The operand may be any vector: `Value.as` sees to that. */
  "as.f32v": [["i32v"], "f32v"],
  "as.i32v": [["i8v"], "i32v"],
  "as.i16v": [["i8v"], "i16v"],
  "as.i8v": [["i32v"], "i8v"],
} satisfies Record<string, Signature>;

export type Operation = keyof typeof signatureTable;

export const signatures: Readonly<Record<Operation, Signature>> = signatureTable;

export const isOperation = (name: string): name is Operation => Object.hasOwn(signatureTable, name);
