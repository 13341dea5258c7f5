/** Weight matrices and their products on the CPU device: allocation, packing, preparation of activations, launches. */

import type { CpuDevice, DeviceBuffer } from "../../devices/index.ts";
import { wasmTarget } from "../../kernels/index.ts";
import { ArgumentError, type WeightType } from "../../tensor/index.ts";
import type { Recorder } from "../recorder.ts";
import { type Arithmetic, activationBlock, activationRowBytes, quantizeActivations } from "./activations.ts";
import {
  type ActivationPrecision,
  arithmeticFor,
  checkMatmul,
  checkWeightShape,
  type MatmulArgs,
  type WeightMatrix,
} from "./contract.ts";
import { f32Expanded } from "./f32Kernels.ts";
import { integerDirect, integerExpanded } from "./integerKernels.ts";
import type { MatmulSpec } from "./kernelParts.ts";
import { packPanels } from "./pack.ts";
import { numPanels, panelBytes, panelsPerGroup } from "./panels.ts";

const { lanes } = wasmTarget;

/** What a weight matrix is to hold. */
export interface WeightMatrixOptions {
  readonly name: string;
  readonly type: WeightType;
  readonly rows: number;
  readonly columns: number;
  readonly precision: ActivationPrecision;
}

/** Room for a weight matrix; `recordPackRows` fills it. */
export function allocateWeightMatrix(device: CpuDevice, options: WeightMatrixOptions): WeightMatrix {
  const { name, type, rows, columns, precision } = options;
  checkWeightShape(name, type, rows, columns);
  const numBytes = numPanels(rows, lanes) * panelBytes({ type, columns }, lanes);
  const buffer = device.allocate(numBytes, name);
  return { name, type, rows, columns, pointer: buffer.pointer, numBytes, arithmetic: arithmeticFor(type, precision) };
}

/** Rows that are packed together: a chunk of rows of a file must begin at a multiple of this. */
export const rowsPerPanelGroup = lanes * panelsPerGroup;

/** Packs `numRows` rows, stored at `source` as in the file, from row `firstRow` on (a multiple of `rowsPerPanelGroup`). */
export function recordPackRows(
  { device, commands }: Recorder,
  weight: WeightMatrix,
  source: number,
  firstRow: number,
  numRows: number,
): void {
  if (firstRow % rowsPerPanelGroup !== 0)
    throw new ArgumentError(`firstRow must be a multiple of ${rowsPerPanelGroup}, got ${firstRow}`);
  if (!Number.isInteger(numRows) || numRows < 0 || firstRow < 0 || firstRow + numRows > weight.rows) {
    throw new ArgumentError(
      `rows ${firstRow} to ${firstRow + numRows} must lie within the ${weight.rows} rows of ${weight.name}`,
    );
  }
  const { type, columns } = weight;
  const out = weight.pointer + (firstRow / lanes) * panelBytes({ type, columns }, lanes);
  const kernel = device.compile(packPanels, { type, columns });
  commands.launch(kernel, { source, out, rows: numRows }, numPanels(numRows, lanes), { grain: 16 });
}

/** Activations in the forms that some weights want: addresses, 0 where a form was not asked for. */
export type PreparedActivations = Readonly<Record<Arithmetic, number>>;

/** Room for quantised activations of up to `capacity` tokens. */
export class ActivationWorkspace {
  readonly columns: number;
  readonly capacity: number;
  readonly #device: CpuDevice;
  readonly #buffers = new Map<"i8" | "i16", DeviceBuffer>();

  constructor(device: CpuDevice, columns: number, capacity: number, consumers: readonly WeightMatrix[]) {
    this.columns = columns;
    this.capacity = capacity;
    this.#device = device;
    for (const { arithmetic, name, columns: expected } of consumers) {
      if (expected !== columns) throw new ArgumentError(`${name} has ${expected} columns, the workspace ${columns}`);
      if (arithmetic === "f32" || this.#buffers.has(arithmetic)) continue;
      if (columns % activationBlock !== 0)
        throw new ArgumentError(`${name} needs a multiple of ${activationBlock} columns, got ${columns}`);
      const numBytes = activationRowBytes(arithmetic, columns) * capacity;
      this.#buffers.set(arithmetic, device.allocate(numBytes, `${arithmetic} activations of ${columns} columns`));
    }
  }

  /** Records the quantisation of x (f32 [numTokens, columns]) in every form that a consumer wants. */
  record({ commands }: Recorder, x: number, numTokens: number): PreparedActivations {
    if (!Number.isInteger(numTokens) || numTokens < 0 || numTokens > this.capacity) {
      throw new ArgumentError(`numTokens must be a whole number up to ${this.capacity}, got ${numTokens}`);
    }
    const forms = { f32: x, i8: 0, i16: 0 };
    for (const [arithmetic, buffer] of this.#buffers) {
      const kernel = this.#device.compile(quantizeActivations, { arithmetic, columns: this.columns });
      commands.launch(kernel, { x, out: buffer.pointer }, numTokens);
      forms[arithmetic] = buffer.pointer;
    }
    return forms;
  }

  free(): void {
    for (const buffer of this.#buffers.values()) this.#device.free(buffer);
    this.#buffers.clear();
  }
}

/** Records a matrix product. `overlap` lets the next launch begin before this one has ended. */
export function recordMatmul(
  { device, commands }: Recorder,
  args: MatmulArgs,
  options: { readonly overlap?: boolean } = {},
): void {
  checkMatmul(args);
  const { weight, numTokens, outStride = weight.rows } = args;
  if (numTokens === 0) return;
  const { kernel, tile } = chooseKernel(weight, numTokens);
  const spec: MatmulSpec = {
    type: weight.type,
    arithmetic: weight.arithmetic,
    columns: weight.columns,
    ...tile,
    hasBias: args.bias !== undefined,
    accumulate: args.accumulate === true,
  };
  const numGroups = numPanels(weight.rows, lanes) / tile.panels;
  const tokenBlock = Math.ceil(numTokens / tile.tokens) * tile.tokens;
  commands.launch(
    device.compile(kernel, spec),
    {
      weights: weight.pointer,
      activations: args.activations,
      out: args.out,
      bias: args.bias ?? 0,
      rows: weight.rows,
      numTokens,
      outStride,
      numGroups,
      tokenBlock,
    },
    numGroups,
    // A few pieces for each thread: small enough to even out a busy neighbour, large enough to read memory in long runs.
    { grain: Math.max(1, Math.floor(numGroups / (device.threads * 8))), overlap: options.overlap === true },
  );
}

interface KernelChoice {
  readonly kernel: typeof integerDirect;
  readonly tile: { readonly tokens: number; readonly panels: number };
}

/** Tiles by measurement (`npm run bench -- matmul`): as many sums as the registers hold. The choice does not change the bits. */
function chooseKernel({ arithmetic }: WeightMatrix, numTokens: number): KernelChoice {
  if (arithmetic === "f32")
    return { kernel: f32Expanded, tile: numTokens < 4 ? { tokens: 1, panels: 4 } : { tokens: 4, panels: 2 } };
  if (numTokens === 1) return { kernel: integerDirect, tile: { tokens: 1, panels: 4 } };
  if (numTokens === 2) return { kernel: integerDirect, tile: { tokens: 2, panels: 2 } };
  if (numTokens <= 4) return { kernel: integerDirect, tile: { tokens: 4, panels: 2 } };
  return { kernel: integerExpanded, tile: { tokens: 4, panels: arithmetic === "i16" ? 1 : 2 } };
}
