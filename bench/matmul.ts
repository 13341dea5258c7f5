/**
 * Speed of the matrix products by stored type, arithmetic and number of tokens, beside the limits of the machine: for one token the
 * memory, for many the arithmetic units. Matrices of few tokens are far larger than the caches.
 */

import { CpuDevice } from "../src/devices/index.ts";
import {
  type ActivationPrecision,
  ActivationWorkspace,
  type Arithmetic,
  allocateWeightMatrix,
  arithmeticFor,
  recordMatmul,
  recordPackRows,
  type WeightMatrix,
} from "../src/ops/matmul/index.ts";
import { type WeightType, weightBytes, weightTypes } from "../src/tensor/index.ts";
import { randomWeights } from "../test/matmul/weights.ts";
import { type Limits, measureLimits, type Peak } from "./limits.ts";
import { allThreads, type Bench, type BenchResult, type Cell } from "./result.ts";

const TOKENS = [1, 2, 4, 8, 16, 64, 256];
const COLUMNS = 1024;
/** Of the whole matrix: more than the caches hold. */
const MATRIX_BYTES = 96 * 2 ** 20;
/** Operations of one product with several tokens; it then has as many rows as that takes. */
const OPERATIONS = 1.5e9;
const LEAST_ROWS = 512;
/** Rows that are generated and packed; the matrix repeats them. */
const SEED_ROWS = 256;
const WARM_MS = 40;
const COUNTED_MS = 60;
const LEAST_ROUNDS = 3;

/** The limit that products in an arithmetic are held against. */
const peakOf = (arithmetic: Arithmetic): Peak =>
  arithmetic === "f32" ? "f32" : arithmetic === "i16" ? "dot16" : "dot8";

interface Rate {
  readonly numTokens: number;
  /** At the median, all threads together. */
  readonly gigaOperations: number;
  readonly gigabytes: number;
}

/** What the engine offers: weights that are not quantised have one arithmetic for both. */
const choices = weightTypes.flatMap((type) =>
  (["f32", "int8"] as const)
    .filter((precision) => precision === "f32" || arithmeticFor(type, precision) !== "f32")
    .map((precision) => ({ type, precision })),
);

/** A matrix of `MATRIX_BYTES`, on the device in packed form. */
async function makeMatrix(device: CpuDevice, type: WeightType, precision: ActivationPrecision): Promise<WeightMatrix> {
  const rows = Math.floor(MATRIX_BYTES / weightBytes(type, COLUMNS) / SEED_ROWS) * SEED_ROWS;
  const weight = allocateWeightMatrix(device, { name: `${type} matrix`, type, rows, columns: COLUMNS, precision });
  const stored = randomWeights(type, SEED_ROWS * COLUMNS, 1);
  const source = device.allocate(stored.length, "stored rows");
  device.u8(source).set(stored);
  const commands = device.commands();
  recordPackRows({ device, commands }, weight, source.pointer, 0, SEED_ROWS);
  await device.run(commands);
  commands.free();
  device.free(source);
  const packed = device.u8At(weight.pointer, weight.numBytes);
  const seedBytes = (weight.numBytes / rows) * SEED_ROWS;
  for (let at = seedBytes; at < packed.length; at += seedBytes) packed.copyWithin(at, 0, seedBytes);
  return weight;
}

async function measure(device: CpuDevice, whole: WeightMatrix, numTokens: number): Promise<Rate> {
  const wanted = OPERATIONS / (2 * COLUMNS * numTokens);
  const rows = numTokens <= 4 ? whole.rows : Math.min(whole.rows, Math.max(LEAST_ROWS, Math.round(wanted / 64) * 64));
  const weight = { ...whole, rows, numBytes: (whole.numBytes / whole.rows) * rows };
  const x = device.allocate(numTokens * COLUMNS * 4, "activations");
  const out = device.allocate(numTokens * rows * 4, "products");
  device.f32(x).forEach((_, i, all) => {
    all[i] = Math.sin(i);
  });
  const workspace = new ActivationWorkspace(device, COLUMNS, numTokens, [weight]);
  const preparation = device.commands();
  const prepared = workspace.record({ device, commands: preparation }, x.pointer, numTokens);
  await device.run(preparation);
  const commands = device.commands();
  const activations = prepared[weight.arithmetic];
  recordMatmul({ device, commands }, { weight, activations, out: out.pointer, numTokens });

  const milliseconds: number[] = [];
  const start = performance.now();
  for (;;) {
    const before = performance.now();
    if (before - start > WARM_MS + COUNTED_MS && milliseconds.length >= LEAST_ROUNDS) break;
    await device.run(commands);
    if (before - start > WARM_MS) milliseconds.push(performance.now() - before);
  }
  commands.free();
  preparation.free();
  workspace.free();
  device.free(x);
  device.free(out);
  const median = milliseconds.sort((a, b) => a - b)[milliseconds.length >> 1];
  return {
    numTokens,
    gigaOperations: (2 * rows * COLUMNS * numTokens) / median / 1e6,
    gigabytes: weight.numBytes / median / 1e6,
  };
}

function row(type: WeightType, arithmetic: Arithmetic, rates: readonly Rate[], limits: Limits): Cell[] {
  const [one] = rates;
  const many = rates[rates.length - 1];
  const peak = limits.peaks[peakOf(arithmetic)].median * limits.threads;
  return [
    type,
    arithmetic,
    one.gigabytes,
    one.gigabytes / limits.read.median,
    ...rates.map(({ gigaOperations }) => gigaOperations),
    peak,
    many.gigaOperations / peak,
  ];
}

/** Weights are never freed alone: a matrix has a device of its own. */
async function withDevice<T>(threads: number, work: (device: CpuDevice) => Promise<T>): Promise<T> {
  const device = await CpuDevice.create({ threads });
  try {
    return await work(device);
  } finally {
    await device.close();
  }
}

export const matmul: Bench = {
  name: "matmul",
  summary: "matrix products by weight type and arithmetic, 1 to 256 tokens",
  async run(options): Promise<BenchResult> {
    const threads = allThreads(options);
    const limits = await withDevice(threads, measureLimits);
    const rows: Cell[][] = [];
    for (const { type, precision } of choices) {
      rows.push(
        await withDevice(threads, async (device) => {
          const weight = await makeMatrix(device, type, precision);
          const rates: Rate[] = [];
          for (const numTokens of TOKENS) rates.push(await measure(device, weight, numTokens));
          return row(type, weight.arithmetic, rates, limits);
        }),
      );
    }
    return {
      name: "matmul",
      about: `Products of matrices of ${COLUMNS} columns with ${TOKENS.join(", ")} tokens on ${threads} threads: GOP/s, two operations for each multiply-add, quantisation of the activations not counted. With up to 4 tokens all ${MATRIX_BYTES / 2 ** 20} MiB of weights are read. The limits were measured just before: reading ${limits.read.median.toFixed(1)} GB/s, and the peak of the instruction that the arithmetic is made of (i8: 8-bit dot products, i16: 16-bit dot products).`,
      tables: [
        {
          title: "Matrix products",
          columns: [
            "weights",
            "arithmetic",
            "1 token, GB/s",
            "of reading",
            ...TOKENS.map((count) => (count === 1 ? "1 token, GOP/s" : `${count}`)),
            "peak",
            `${TOKENS[TOKENS.length - 1]} of peak`,
          ],
          rows,
        },
      ],
      remarks: [],
    };
  },
};
