/**
 * What this machine allows, measured through kernels of our own language: how fast memory is read, and how many operations a core does
 * without touching memory. Targets and kernels are compared with these figures.
 */

import type { CommandList, CpuDevice, DeviceBuffer } from "../src/devices/index.ts";
import { defineKernel, type KernelBuilder, type Value } from "../src/kernels/index.ts";
import { allocateWeightMatrix, recordMatmul, recordPackRows } from "../src/ops/matmul/index.ts";
import { type Spread, spread } from "./result.ts";

/** Many times the caches of any machine this is likely to run on. */
const READ_BYTES = 256 * 2 ** 20;
const TASK_BYTES = 2 ** 18;
/** Long enough for the engine to replace its quick first code of a kernel on every thread. */
const WARM_MS = 200;

const readMemory = defineKernel({
  name: "benchReadMemory",
  params: { from: "pointer", out: "pointer" },
  build(k, { taskBytes }: { readonly taskBytes: number }, { from, out }) {
    const vectorBytes = 4 * k.lanes;
    k.forTasks((task) => {
      const start = k.let(from.add(task.mul(taskBytes)));
      const sums = Array.from({ length: 4 }, () => k.var("i32v", 0));
      k.for(0, taskBytes, sums.length * vectorBytes, (offset) => {
        const at = k.let(start.add(offset));
        for (const [i, sum] of sums.entries()) sum.set(sum.value.add(k.load("i32v", at, i * vectorBytes)));
      });
      const total = sums.map(({ value }) => value).reduce((left, right) => left.add(right));
      k.store("i32v", out.add(task.mul(vectorBytes)), total);
    });
  },
});

/** Reads a large buffer on a device again and again, whenever it is asked to. */
export class ReadBandwidth {
  readonly #device: CpuDevice;
  readonly #buffers: readonly DeviceBuffer[];
  readonly #commands: CommandList;

  constructor(device: CpuDevice) {
    this.#device = device;
    const numTasks = READ_BYTES / TASK_BYTES;
    const [from, out] = [READ_BYTES, numTasks * 64].map((numBytes) => device.allocate(numBytes, "read bandwidth"));
    this.#buffers = [from, out];
    // Memory that was never written is one page of zeros to the system, and would be read from the cache.
    device.i32(from).fill(1);
    this.#commands = device.commands();
    const kernel = device.compile(readMemory, { taskBytes: TASK_BYTES });
    this.#commands.launch(kernel, { from: from.pointer, out: out.pointer }, numTasks);
  }

  /** Reads until the engine's optimised code is in place. */
  async warm(): Promise<void> {
    for (const end = performance.now() + WARM_MS; performance.now() < end; ) await this.measure(1);
  }

  /** GB/s of each of `rounds` passes over the buffer. */
  async measure(rounds: number): Promise<number[]> {
    const rates: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const start = performance.now();
      await this.#device.run(this.#commands);
      rates.push(READ_BYTES / (performance.now() - start) / 1e6);
    }
    return rates;
  }

  free(): void {
    this.#commands.free();
    for (const buffer of this.#buffers) this.#device.free(buffer);
  }
}

/**
 * Operations without memory traffic. `f32`: fused multiply-adds. `dot16`: products of 16-bit integers summed in pairs, added in 32 bits.
 * `dot8`: products of 8-bit integers summed in pairs, added in 16 bits. `dot8 widened`: the same, moved on to 32 bits after every 4.
 */
export const peaks = ["f32", "dot16", "dot8", "dot8 widened"] as const;
export type Peak = (typeof peaks)[number];

const OPERAND_BYTES = 1024;
const PEAK_STEPS = 250;
/** So that all kernels take about as long. */
const F32_STEPS = PEAK_STEPS * 16;
const PEAK_TASKS = 32;
/** Independent sums: more than latency times throughput of the units, and few enough for 15 registers with what else is needed. */
const F32_CHAINS = 10;
const NUM_FACTORS = 4;
const NUM_SUMS = 8;
/** Operands loaded in one pass of the loop: enough that its own instructions do not count. */
const NUM_LOADED = 8;
/** Pair sums of 8-bit products that go into 16 bits before they are moved on. */
const WIDEN_EVERY = 4;

/**
 * What is multiplied changes with every step, or else the engine takes the multiplication out of the loop and only additions are
 * measured: an f32 chain multiplies its own result, and dot products meet operands that were just loaded from the first-level cache.
 */
const peakKernel = defineKernel({
  name: "benchPeak",
  params: { operands: "pointer", out: "pointer" },
  build(k, { peak }: { readonly peak: Peak }, { operands, out }) {
    k.forTasks((task) => {
      const results = peak === "f32" ? f32Chains(k, operands) : dotSums(k, operands, peak);
      const at = k.let(out.add(task.mul(F32_CHAINS * k.lanes * 4)));
      for (const [i, result] of results.entries()) k.store("f32v", at, result, i * k.lanes * 4);
    });
  },
});

function f32Chains(k: KernelBuilder, operands: Value<"i32">): Value<"f32v">[] {
  const factor = k.let(k.load("f32v", operands));
  const step = k.let(k.load("f32v", operands, k.lanes * 4));
  const chains = Array.from({ length: F32_CHAINS }, () => k.var("f32v", 1));
  k.for(0, F32_STEPS, 1, () => {
    for (const chain of chains) chain.set(chain.value.fma(factor, step));
  });
  return chains.map(({ value }) => value);
}

function dotSums(k: KernelBuilder, operands: Value<"i32">, peak: Exclude<Peak, "f32">): Value<"f32v">[] {
  const vectorBytes = 4 * k.lanes;
  const factorAt = (i: number): Value<"i8v"> => k.let(k.load("i8v", operands, i * vectorBytes));
  const factors = Array.from({ length: NUM_FACTORS }, (_, i) => factorAt(i));
  const ones = k.all("i16v", 1);
  const widened = peak !== "dot8";
  const sums = Array.from({ length: widened ? NUM_FACTORS : NUM_SUMS }, () => k.var(widened ? "i32v" : "i16v", 0));
  const short = peak === "dot8 widened" ? sums.map(() => k.var("i16v", 0)) : [];
  k.for(0, PEAK_STEPS, 1, () => {
    k.for(0, OPERAND_BYTES, NUM_LOADED * vectorBytes, (offset) => {
      const at = k.let(operands.add(offset));
      for (let i = 0; i < NUM_LOADED; i++) {
        const loaded = k.let(k.load("i8v", at, i * vectorBytes));
        factors.forEach((factor, j) => {
          if (peak === "dot8 widened") {
            const product = loaded.dotPairsU7(factor);
            short[j].set(i % WIDEN_EVERY === 0 ? product : short[j].value.add(product));
            if (i % WIDEN_EVERY === WIDEN_EVERY - 1) sums[j].set(sums[j].value.add(short[j].value.dotPairs(ones)));
          } else {
            const sum = sums[(i * NUM_FACTORS + j) % sums.length];
            const product =
              peak === "dot16" ? loaded.as("i16v").dotPairs(factor.as("i16v")) : loaded.dotPairsU7(factor);
            sum.set(sum.value.add(product));
          }
        });
      }
    });
  });
  return sums.map(({ value }) => value.as("f32v"));
}

/** Operations of one task, two for each multiply-add. */
function operations(peak: Peak, lanes: number): number {
  if (peak === "f32") return 2 * lanes * F32_CHAINS * F32_STEPS;
  const numDots = PEAK_STEPS * (OPERAND_BYTES / (4 * lanes)) * NUM_FACTORS;
  return numDots * 2 * (peak === "dot16" ? 2 : 4) * lanes;
}

/** WebAssembly's vectors have four 32-bit lanes. */
const LANES = 4;

/** Measures the operations of a device, all its threads together. */
export class ComputePeak {
  readonly #device: CpuDevice;
  readonly #buffers: readonly DeviceBuffer[];
  readonly #lists: ReadonlyMap<Peak, CommandList>;

  constructor(device: CpuDevice) {
    this.#device = device;
    const sizes = [OPERAND_BYTES, PEAK_TASKS * F32_CHAINS * LANES * 4];
    const [operands, out] = sizes.map((numBytes) => device.allocate(numBytes, "peak"));
    this.#buffers = [operands, out];
    // As bytes 0x3f, as 16-bit integers 0x3f3f, as f32 0.747: chains of x * 0.747 + 0.747 stay normal numbers.
    device.u8(operands).fill(0x3f);
    const list = (peak: Peak): CommandList => {
      const commands = device.commands();
      const args = { operands: operands.pointer, out: out.pointer };
      commands.launch(device.compile(peakKernel, { peak }), args, PEAK_TASKS, { grain: 1 });
      return commands;
    };
    this.#lists = new Map(peaks.map((peak) => [peak, list(peak)]));
  }

  /** Computes until the engine's optimised code is in place. */
  async warm(peak: Peak): Promise<void> {
    for (const end = performance.now() + WARM_MS; performance.now() < end; ) await this.measure(peak, 1);
  }

  /** GOP/s per thread of each of `rounds` runs (a few milliseconds each). */
  async measure(peak: Peak, rounds: number): Promise<number[]> {
    const commands = this.#lists.get(peak);
    if (commands === undefined) throw new Error(`no list for ${peak}`);
    const rates: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const start = performance.now();
      await this.#device.run(commands);
      const seconds = (performance.now() - start) / 1000;
      rates.push((operations(peak, LANES) * PEAK_TASKS) / seconds / 1e9 / this.#device.threads);
    }
    return rates;
  }

  free(): void {
    for (const commands of this.#lists.values()) commands.free();
    for (const buffer of this.#buffers) this.#device.free(buffer);
  }
}

/** A product as prefill has them: as many tokens as a chunk of a prompt, a matrix that fits into the caches. */
const TILE_TOKENS = 256;
const TILE_ROWS = 1024;
const TILE_COLUMNS = 1024;

/**
 * Measures the f32 matrix product of src/ops/matmul, all threads together: what the same kernel language reaches when operands come from
 * memory, tile by tile. Its matrix stays on the device until that is closed.
 */
export class MatrixTile {
  readonly #device: CpuDevice;
  readonly #buffers: readonly DeviceBuffer[];
  readonly #commands: CommandList;

  private constructor(device: CpuDevice, buffers: readonly DeviceBuffer[], commands: CommandList) {
    this.#device = device;
    this.#buffers = buffers;
    this.#commands = commands;
  }

  static async create(device: CpuDevice): Promise<MatrixTile> {
    const options = { name: "tile", type: "F32", rows: TILE_ROWS, columns: TILE_COLUMNS, precision: "f32" } as const;
    const weight = allocateWeightMatrix(device, options);
    const source = device.allocate(TILE_ROWS * TILE_COLUMNS * 4, "stored rows");
    const sizes = [TILE_TOKENS * TILE_COLUMNS, TILE_TOKENS * TILE_ROWS];
    const [x, out] = sizes.map((size) => device.allocate(size * 4, "matrix tile"));
    for (const buffer of [source, x]) {
      const values = device.f32(buffer);
      for (let i = 0; i < values.length; i++) values[i] = Math.sin(i);
    }
    const packing = device.commands();
    recordPackRows({ device, commands: packing }, weight, source.pointer, 0, TILE_ROWS);
    await device.run(packing);
    packing.free();
    device.free(source);
    const commands = device.commands();
    const args = { weight, activations: x.pointer, out: out.pointer, numTokens: TILE_TOKENS };
    recordMatmul({ device, commands }, args);
    return new MatrixTile(device, [x, out], commands);
  }

  /** Computes until the engine's optimised code is in place. */
  async warm(): Promise<void> {
    for (const end = performance.now() + WARM_MS; performance.now() < end; ) await this.measure(1);
  }

  /** GFLOP/s of all threads together in each of `rounds` products. */
  async measure(rounds: number): Promise<number[]> {
    const rates: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const start = performance.now();
      await this.#device.run(this.#commands);
      rates.push((2 * TILE_TOKENS * TILE_ROWS * TILE_COLUMNS) / (performance.now() - start) / 1e6);
    }
    return rates;
  }

  free(): void {
    this.#commands.free();
    for (const buffer of this.#buffers) this.#device.free(buffer);
  }
}

const COUNTED_ROUNDS = 9;

export interface Limits {
  readonly threads: number;
  /** GB/s, all threads together. */
  readonly read: Spread;
  /** GOP/s per thread. */
  readonly peaks: Readonly<Record<Peak, Spread>>;
}

/** All limits of a device. Takes about two seconds. */
export async function measureLimits(device: CpuDevice): Promise<Limits> {
  const bandwidth = new ReadBandwidth(device);
  const compute = new ComputePeak(device);
  await bandwidth.warm();
  const read = spread(await bandwidth.measure(COUNTED_ROUNDS));
  const measured: [Peak, Spread][] = [];
  for (const peak of peaks) {
    await compute.warm(peak);
    measured.push([peak, spread(await compute.measure(peak, COUNTED_ROUNDS))]);
  }
  bandwidth.free();
  compute.free();
  return { threads: device.threads, read, peaks: Object.fromEntries(measured) as Record<Peak, Spread> }; // all of `peaks`
}
