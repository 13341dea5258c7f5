/**
 * Loops over a row inside a kernel, a register at a time, for rows of any length: the building block of the row-wise kernels. What is done
 * with the registers is the kernel's.
 */
import { type KernelBuilder, type KernelTarget, type Operand, Value } from "../../kernels/index.ts";

/** One register's worth of a row. `base` is the address of the row's first element. */
export interface Lanes {
  /** The elements here; lanes past the end of the row hold `padding`. */
  load(base: Value<"i32">, padding?: number): Value<"f32v">;
  /** Writes the elements here; lanes past the end are not written. */
  store(base: Value<"i32">, value: Value<"f32v">): void;
  /** Writes 16-bit values (0..65535 in each lane) to a row of 2-byte elements; lanes past the end are not written. */
  storeHalves(base: Value<"i32">, value: Value<"i32v">): void;
  /** Which of the unrolled copies of the body this is: the index of an accumulator, so that sums have a fixed order. */
  readonly slot: number;
}

/** Scratch memory that a kernel with `forLanes` needs, at the start of its scratch. */
export function lanesScratchBytes(target: KernelTarget): number {
  return target.lanes * 4;
}

/**
 * Builds loops over `count` elements: `unroll` registers at a time, then one, then the rest through scratch memory. Which element goes to which lane of
 * which slot depends on its index and on `count` alone. `unroll` is a power of two.
 */
export function forLanes(k: KernelBuilder, count: Operand<"i32">, unroll: number, body: (lanes: Lanes) => void): void {
  const width = k.lanes * 4;
  const end = count instanceof Value ? k.let(count.shl(2)) : count * 4;
  const unrolledEnd = floorTo(k, end, width * unroll);
  const registersEnd = floorTo(k, end, width);

  forBytes(k, 0, unrolledEnd, width * unroll, (at) => {
    for (let slot = 0; slot < unroll; slot++) body(registerLanes(k, at, slot));
  });
  if (unroll > 1) forBytes(k, unrolledEnd, registersEnd, width, (at) => body(registerLanes(k, at, 0)));
  if (registersEnd === end) return;
  const tail = (): void => body(tailLanes(k, registersEnd, end));
  if (typeof end === "number") tail();
  else k.if(end.gt(registersEnd), tail);
}

function registerLanes(k: KernelBuilder, at: Value<"i32">, slot: number): Lanes {
  const offset = slot * k.lanes * 4;
  return {
    slot,
    load: (base) => k.load("f32v", base.add(at), offset),
    store: (base, value) => k.store("f32v", base.add(at), value, offset),
    storeHalves: (base, value) => k.store("i32v to u16", base.add(at.shrU(1)), value, offset / 2),
  };
}

/** The last, partial register: its elements are moved one by one to and from scratch memory, as integers so that every bit stays. */
function tailLanes(k: KernelBuilder, start: Operand<"i32">, end: Operand<"i32">): Lanes {
  const scratch = k.let(k.scratch.sub(start));
  const move = (from: Value<"i32">, to: Value<"i32">): void =>
    k.for(start, end, 4, (at) => k.store("i32", to.add(at), k.load("i32", from.add(at))));
  return {
    slot: 0,
    load(base, padding = 0) {
      k.store("f32v", k.scratch, padding);
      move(base, scratch);
      return k.let(k.load("f32v", k.scratch));
    },
    store(base, value) {
      k.store("f32v", k.scratch, value);
      move(scratch, base);
    },
    storeHalves(base, value) {
      k.store("i32v to u16", k.scratch, value);
      const halfScratch = k.let(k.scratch.sub(half(start)));
      k.for(half(start), half(end), 2, (at) => k.store("u16", base.add(at), k.load("u16", halfScratch.add(at))));
    },
  };
}

function half(numBytes: Operand<"i32">): Operand<"i32"> {
  return numBytes instanceof Value ? numBytes.shrU(1) : numBytes / 2;
}

function forBytes(
  k: KernelBuilder,
  start: Operand<"i32">,
  end: Operand<"i32">,
  step: number,
  body: (at: Value<"i32">) => void,
): void {
  if (start === end) return;
  k.for(start, end, step, body);
}

/** `numBytes` rounded down to a multiple of a power of two. */
function floorTo(k: KernelBuilder, numBytes: Operand<"i32">, multiple: number): Operand<"i32"> {
  return numBytes instanceof Value ? k.let(numBytes.and(-multiple)) : numBytes - (numBytes % multiple);
}

/**
 * Tasks of at most `chunk` elements of one row: `numRows * ceil(length / chunk)` tasks, so that one long row still occupies every thread. The
 * body gets the row, the first element of the chunk, the elements in it, and the chunk's number in the row.
 */
export function forRowChunks(
  k: KernelBuilder,
  length: Value<"i32">,
  chunk: number,
  body: (row: Value<"i32">, first: Value<"i32">, count: Value<"i32">, index: Value<"i32">) => void,
): void {
  const chunks = chunkCount(k, length, chunk);
  k.forTasks((task) => {
    const row = k.let(task.divU(chunks));
    const index = k.let(task.sub(row.mul(chunks)));
    const first = k.let(index.mul(chunk));
    const rest = k.let(length.sub(first));
    body(row, first, k.let(k.select(rest.lt(chunk), rest, chunk)), index);
  });
}

/** Chunks that a row of `length` elements makes. */
export function chunkCount(k: KernelBuilder, length: Value<"i32">, chunk: number): Value<"i32"> {
  return k.let(length.add(chunk - 1).divU(chunk));
}

/** The address of an element of a row: `base` + 4 * (row * stride + first). */
export function elementAddress(
  k: KernelBuilder,
  base: Value<"i32">,
  row: Value<"i32">,
  stride: Value<"i32">,
  first: Operand<"i32"> = 0,
): Value<"i32"> {
  return k.let(base.add(row.mul(stride).add(first).shl(2)));
}
