/**
 * Kernel part: walks a row of f32 numbers some registers at a time, whatever its length, to encode it or to find its range. How a
 * storage type encodes a block is in rowEncoder.ts.
 */
import type { KernelBuilder, KernelTarget, Operand, Value } from "../../kernels/index.ts";

export type Address = Value<"i32">;

/** Registers of the longest block. */
const BLOCK_REGISTERS = 8;

/** Scratch memory that a walk needs: the numbers of the last, shorter block, and what they become. */
export function rowBlocksBytes({ lanes }: KernelTarget): number {
  return 2 * BLOCK_REGISTERS * lanes * 4;
}

/** A row of numbers, and how many there are: known when the kernel is built, or when it runs. */
export interface RowSource {
  readonly scratch: Address;
  /** What the numbers are divided by first. */
  readonly divisor?: Value<"f32">;
}

/** One block of a row being encoded. */
export interface Block {
  /** The numbers of one of its registers; 0 past the end of the row. */
  load(register: number): Value<"f32v">;
  /** Where its code begins: in the row's memory, or in scratch for the last block. */
  readonly to: Address;
  /** In the last block: which lanes of a register belong to the row. Undefined for a block that is full. */
  present?(register: number): Value<"i32v">;
}

export interface BlockShape {
  readonly registers: number;
  /** Bits that one number takes. */
  readonly bits: number;
  /** Numbers that are stored together: the last block is stored up to a multiple of it. */
  readonly together: number;
}

/**
 * Encodes `count` numbers from `from` on, block by block. Blocks are `registers` registers long; the last one goes through scratch, so
 * that nothing outside of the row is read or written.
 */
export function forBlocks(
  k: KernelBuilder,
  { scratch, divisor }: RowSource,
  { registers, bits, together }: BlockShape,
  count: Operand<"i32">,
  from: Address,
  to: Address,
  encode: (block: Block) => void,
): void {
  const width = registers * k.lanes;
  const divided = divide(k, divisor);
  const loader = (numbers: Address) => (register: number) => divided(k.load("f32v", numbers, register * k.lanes * 4));
  const bytesOf = (numbers: Value<"i32">): Value<"i32"> => numbers.mul(bits).shrU(3);
  const length = typeof count === "number" ? k.i32(count) : count;
  const whole = k.let(length.and(-width));
  k.for(0, whole, width, (first) => {
    encode({ load: loader(k.let(from.add(first.shl(2)))), to: k.let(to.add(bytesOf(first))) });
  });
  if (typeof count === "number" && count % width === 0) return;
  const rest = k.let(length.sub(whole));
  k.if(rest.gt(0), () => {
    for (let register = 0; register < registers; register++) k.store("f32v", scratch, 0, register * k.lanes * 4);
    copy(k, "i32", rest.shl(2), k.let(from.add(whole.shl(2))), scratch);
    const coded = k.let(scratch.add(BLOCK_REGISTERS * k.lanes * 4));
    const limit = k.let(k.splat(rest));
    encode({
      load: loader(scratch),
      to: coded,
      present: (register) =>
        k
          .laneIndices()
          .add(register * k.lanes)
          .lt(limit),
    });
    const stored = bytesOf(rest.add(together - 1).and(-together));
    copy(k, bits === 32 ? "i32" : bits === 16 ? "u16" : "u8", stored, coded, k.let(to.add(bytesOf(whole))));
  });
}

/** The bits of the largest magnitude of a row, in every case an f32 of at least 0: NaN if one number is. */
export function largestMagnitude(
  k: KernelBuilder,
  source: RowSource,
  count: Operand<"i32">,
  from: Address,
): Value<"i32"> {
  const largest = k.var("i32v", 0);
  // As integers, magnitudes are in order, with infinity and then NaN behind all numbers.
  forNumbers(k, source, count, from, (x) => largest.set(largest.value.max(x.as("i32v").and(0x7fffffff))));
  return reduceLanes(k, largest.value, (a, b) => a.gt(b));
}

/** The smallest and the largest number of a row that has one: one of them is NaN if a number is. */
export function rangeOf(
  k: KernelBuilder,
  source: RowSource,
  count: Operand<"i32">,
  from: Address,
): { readonly min: Value<"f32">; readonly max: Value<"f32"> } {
  const smallest = k.var("i32v", 0x7fffffff);
  const largest = k.var("i32v", 0x80000000);
  forNumbers(k, source, count, from, (x) => {
    // The order of numbers as one of integers: -NaN, -infinity, ... -0, 0, ... infinity, NaN.
    const bits = k.let(x.as("i32v"));
    const ordered = k.let(bits.xor(bits.shr(31).and(0x7fffffff)));
    smallest.set(smallest.value.min(ordered));
    largest.set(largest.value.max(ordered));
  });
  const number = (ordered: Value<"i32">): Value<"f32"> => k.let(ordered.xor(ordered.shr(31).and(0x7fffffff)).asF32());
  return {
    min: number(reduceLanes(k, smallest.value, (a, b) => a.lt(b))),
    max: number(reduceLanes(k, largest.value, (a, b) => a.gt(b))),
  };
}

/** Calls `body` for registers that together hold all numbers of a row, and no others; the last may repeat the first number. */
function forNumbers(
  k: KernelBuilder,
  { scratch, divisor }: RowSource,
  count: Operand<"i32">,
  from: Address,
  body: (x: Value<"f32v">) => void,
): void {
  const divided = divide(k, divisor);
  const length = typeof count === "number" ? k.i32(count) : count;
  const whole = k.let(length.and(-k.lanes));
  k.for(0, whole, k.lanes, (first) => body(k.let(divided(k.load("f32v", from.add(first.shl(2)))))));
  if (typeof count === "number" && count % k.lanes === 0) return;
  const rest = k.let(length.sub(whole));
  k.if(rest.gt(0), () => {
    k.store("i32v", scratch, k.splat(k.load("i32", from)));
    copy(k, "i32", rest.shl(2), k.let(from.add(whole.shl(2))), scratch);
    body(k.let(divided(k.load("f32v", scratch))));
  });
}

function divide(k: KernelBuilder, divisor: Value<"f32"> | undefined): (x: Value<"f32v">) => Value<"f32v"> {
  if (divisor === undefined) return (x) => x;
  const all = k.let(k.splat(divisor));
  return (x) => k.let(x.div(all));
}

const unitBytes = { i32: 4, u16: 2, u8: 1 } as const;

/** Copies so many bytes one unit at a time. */
function copy(
  k: KernelBuilder,
  unit: keyof typeof unitBytes,
  numBytes: Value<"i32">,
  from: Address,
  to: Address,
): void {
  k.for(0, numBytes, unitBytes[unit], (at) => k.store(unit, to.add(at), k.load(unit, from.add(at))));
}

function reduceLanes(
  k: KernelBuilder,
  vector: Value<"i32v">,
  isBetter: (a: Value<"i32">, b: Value<"i32">) => Value<"i32">,
): Value<"i32"> {
  let best: Value<"i32"> = vector.lane(0);
  for (let lane = 1; lane < k.lanes; lane++) {
    const next = k.let(vector.lane(lane));
    best = k.let(k.select(isBetter(next, best), next, best));
  }
  return best;
}
