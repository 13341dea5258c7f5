/**
 * One layer's ranks and up-projections in device memory: what the kernel reads beside the cache, the queries that absorb U_k, and
 * outputs expanded by U_v. The cache itself is cache.ts's.
 */
import type { CpuDevice, DeviceBuffer } from "../../devices/index.ts";
import { type LatentLayout, type LatentRanks, latentLayout, latentTableWords } from "../../ops/attention/index.ts";
import { type DeviceTensor, recordAddBias } from "../../ops/elementwise/index.ts";
import { type HeadsTensor, recordHeadProjection } from "../../ops/headProjection/index.ts";
import type { Recorder } from "../../ops/recorder.ts";
import { ArgumentError, numElements, ShapeError } from "../../tensor/index.ts";
import { requireType } from "../tensors.ts";
import type { PaluSpec } from "./spec.ts";

/**
 * Factors of a layer in the order of the kernels (`headUpProjections`): for each key/value head in order [rank of its group, headDim].
 * Arrays are copied to the device; a tensor of any shape with as many f32 elements is read where it lies, and stays the caller's.
 */
export interface PaluFactors extends LatentRanks {
  readonly upK: Float32Array | DeviceTensor;
  /** Only to expand outputs: a layer whose output projection is fused does without. */
  readonly upV?: Float32Array;
  /** [numKvHeads, headDim], exactly if the spec has keyBias. */
  readonly keyBias?: Float32Array;
  /** [numKvHeads, headDim]: added to expanded outputs. */
  readonly valueBias?: Float32Array;
}

/** What of a spec a layer depends on. */
export type PaluLayerSpec = Pick<
  PaluSpec,
  "numQHeads" | "numKvHeads" | "headDim" | "maxRankK" | "maxRankV" | "keyBias" | "storage" | "valueStorage"
>;

/** A layer's ranks and factors on a device, until `release`. */
export class PaluLayer {
  readonly device: CpuDevice;
  readonly spec: PaluLayerSpec;
  readonly layout: LatentLayout;
  /** `LatentLayout.table` on the device. */
  readonly table: number;
  /** The same with an entry for each group instead of each head. */
  readonly groupTable: number;
  readonly upK: number;
  readonly keyBias: number | undefined;
  readonly #upV: number | undefined;
  /** The values' bias of each query head. */
  readonly #valueBias: number | undefined;
  readonly #buffers: DeviceBuffer[] = [];

  /** Throws ArgumentError or ShapeError for ranks or factors that do not fit the spec, CapacityError when there is no room. */
  constructor(device: CpuDevice, spec: PaluLayerSpec, factors: PaluFactors) {
    this.device = device;
    this.spec = spec;
    this.layout = latentLayout(factors, spec);
    checkFactors(spec, this.layout, factors);
    try {
      const table = this.#allocate(this.layout.table.byteLength);
      device.i32(table).set(this.layout.table);
      this.table = table.pointer;
      const groups = groupEntries(this.layout);
      const groupTable = this.#allocate(groups.byteLength);
      device.i32(groupTable).set(groups);
      this.groupTable = groupTable.pointer;
      this.upK = "pointer" in factors.upK ? factors.upK.pointer : this.#upload(factors.upK);
      this.keyBias = factors.keyBias && this.#upload(factors.keyBias);
      this.#upV = factors.upV && this.#upload(factors.upV);
      this.#valueBias = factors.valueBias && this.#upload(perQueryHead(spec, factors.valueBias));
    } catch (error) {
      this.release();
      throw error;
    }
  }

  /**
   * Records out = q U_k^T of each head: q [tokens, numQHeads, headDim] -> out [tokens, numQHeads, maxRankK]. Channels past the rank of a head
   * are not written, and the kernel does not read them. Throws ShapeError or ArgumentError naming the argument that does not fit.
   */
  recordAbsorb(recorder: Recorder, q: HeadsTensor, out: HeadsTensor, numTokens?: number): void {
    const { numQHeads, headDim, maxRankK } = this.spec;
    requireHeads("q", q, [numQHeads, headDim]);
    requireHeads("out", out, [numQHeads, maxRankK]);
    const weight = { pointer: this.upK, shape: [this.layout.upElements / headDim, headDim], type: "f32" } as const;
    const qHead = q.headStride ?? headDim;
    const outHead = out.headStride ?? maxRankK;
    for (const { firstHead, firstRow, rank, group } of this.#kvHeads(this.layout.ranksK)) {
      recordHeadProjection(
        recorder,
        { kind: "expand", rows: rank, columns: headDim },
        {
          x: headSlice(q, firstHead * qHead, group, headDim, qHead, numQHeads * qHead),
          out: headSlice(out, firstHead * outHead, group, rank, outHead, numQHeads * outHead),
          weight,
          firstRow,
          headRows: 0,
          numTokens,
        },
      );
    }
  }

  /**
   * Records the full outputs: latents [tokens, outRow] times U_v of each head, plus the values' bias -> out [tokens, numQHeads, headDim]. The
   * bias reaches rows without any key too. Throws ArgumentError for a layer without upV, and for arguments that do not fit.
   */
  recordExpand(recorder: Recorder, latents: HeadsTensor, out: HeadsTensor, numTokens: number = latents.shape[0]): void {
    if (this.#upV === undefined) throw new ArgumentError("recordExpand needs a layer with upV");
    const { numQHeads, numKvHeads, headDim } = this.spec;
    const { ranksV, outRow, outOffsets } = this.layout;
    requireHeads("out", out, [numQHeads, headDim]);
    if (latents.shape.length !== 2 || latents.shape[1] !== outRow) {
      throw new ShapeError(`latents must have shape [tokens, ${outRow}], got [${latents.shape.join(", ")}]`);
    }
    const rows = ranksV.reduce((sum, rank) => sum + rank * (numKvHeads / ranksV.length), 0);
    const weight = { pointer: this.#upV, shape: [rows, headDim], type: "f32" } as const;
    const outHead = out.headStride ?? headDim;
    for (const { firstHead, firstRow, rank, group } of this.#kvHeads(ranksV)) {
      recordHeadProjection(
        recorder,
        { kind: "absorb", rows: rank, columns: headDim },
        {
          x: headSlice(latents, outOffsets[firstHead], group, rank, rank, outRow),
          out: headSlice(out, firstHead * outHead, group, headDim, outHead, numQHeads * outHead),
          weight,
          firstRow,
          headRows: 0,
          numTokens,
        },
      );
    }
    if (this.#valueBias === undefined) return;
    if (outHead !== headDim) throw new ArgumentError(`out.headStride must be ${headDim} with a bias, got ${outHead}`);
    const flat = { ...out, shape: [out.shape[0], numQHeads * headDim], rowStride: out.rowStride };
    const bias = { pointer: this.#valueBias, shape: [numQHeads * headDim], type: "f32" } as const;
    recordAddBias(recorder, { x: flat, bias, out: flat, numRows: numTokens });
  }

  /** Gives the device memory back. */
  release(): void {
    for (const buffer of this.#buffers.splice(0)) this.device.free(buffer);
  }

  /** Each key/value head: its first query head, where its factor begins (in rows), its rank, and its number of query heads. */
  #kvHeads(ranks: readonly number[]) {
    const { numQHeads, numKvHeads } = this.spec;
    const group = numQHeads / numKvHeads;
    let firstRow = 0;
    return Array.from({ length: numKvHeads }, (_, kvHead) => {
      const rank = ranks[Math.floor((kvHead * ranks.length) / numKvHeads)];
      const place = { firstHead: kvHead * group, firstRow, rank, group };
      firstRow += rank;
      return place;
    });
  }

  #upload(values: Float32Array): number {
    const buffer = this.#allocate(values.byteLength);
    this.device.f32(buffer).set(values);
    return buffer.pointer;
  }

  #allocate(numBytes: number): DeviceBuffer {
    const buffer = this.device.allocate(numBytes, "palu layer");
    this.#buffers.push(buffer);
    return buffer;
  }
}

function checkFactors(spec: PaluLayerSpec, layout: LatentLayout, factors: PaluFactors): void {
  const { numKvHeads, headDim, maxRankK, maxRankV, keyBias } = spec;
  for (const [name, ranks, max] of [
    ["ranksK", factors.ranksK, maxRankK],
    ["ranksV", factors.ranksV, maxRankV],
  ] as const) {
    for (const [g, rank] of ranks.entries()) {
      if (rank > max) {
        throw new ArgumentError(
          `${name}[${g}] = ${rank} must be at most the spec's ${name === "ranksK" ? "maxRankK" : "maxRankV"} = ${max}`,
        );
      }
    }
  }
  if ((keyBias === true) !== (factors.keyBias !== undefined)) {
    throw new ArgumentError(`keyBias must be given exactly if the spec has keyBias, which is ${keyBias === true}`);
  }
  const upElementsV = factors.ranksV.reduce(
    (sum, rank) => sum + rank * headDim * (numKvHeads / factors.ranksV.length),
    0,
  );
  const lengths = {
    upK: layout.upElements,
    upV: upElementsV,
    keyBias: numKvHeads * headDim,
    valueBias: numKvHeads * headDim,
  } as const;
  for (const name of ["upK", "upV", "keyBias", "valueBias"] as const) {
    const given = factors[name];
    if (given === undefined) continue;
    if ("pointer" in given) requireType(name, given, "f32");
    const length = "pointer" in given ? numElements(given.shape) : given.length;
    if (length !== lengths[name]) throw new ShapeError(`${name} must have ${lengths[name]} elements, got ${length}`);
  }
}

function perQueryHead({ numQHeads, numKvHeads, headDim }: PaluLayerSpec, bias: Float32Array): Float32Array {
  const group = numQHeads / numKvHeads;
  return Float32Array.from({ length: numQHeads * headDim }, (_, i) => {
    const kvHead = Math.floor(i / headDim / group);
    return bias[kvHead * headDim + (i % headDim)];
  });
}

function requireHeads(name: string, { shape }: HeadsTensor, [heads, channels]: readonly [number, number]): void {
  if (shape.length === 3 && shape[1] === heads && shape[2] === channels) return;
  throw new ShapeError(`${name} must have shape [tokens, ${heads}, ${channels}], got [${shape.join(", ")}]`);
}

/** Neighbouring heads of a tensor as one of their own, from an element of its rows on. */
function headSlice(
  tensor: HeadsTensor,
  firstElement: number,
  heads: number,
  channels: number,
  headStride: number,
  rowLength: number,
): HeadsTensor {
  return {
    pointer: tensor.pointer + firstElement * 4,
    shape: [tensor.shape[0], heads, channels],
    type: tensor.type,
    headStride,
    rowStride: tensor.rowStride ?? rowLength,
  };
}

/** The entries of each group's first head, where the outputs of the group begin too. */
function groupEntries({ table, numGroups }: LatentLayout): Int32Array {
  const numHeads = table.length / latentTableWords;
  const groups = new Int32Array(numGroups * latentTableWords);
  for (let group = 0; group < numGroups; group++) {
    const at = group * (numHeads / numGroups) * latentTableWords;
    groups.set(table.subarray(at, at + latentTableWords), group * latentTableWords);
  }
  return groups;
}
