/**
 * FlashInfer's BatchMLAPagedAttentionWrapper: absorbed queries, any number for each sequence, over latents and rotated rope keys. In the
 * form of separate tensors and lists of pages; the LSE is to base 2 unless asked for otherwise.
 */
import type { AttentionResult, MlaStorage } from "../attention/index.ts";
import type { CpuDevice } from "../devices/index.ts";
import { type AttentionBatch, type ElementStorage, requireInteger } from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import { ArgumentError } from "../tensor/index.ts";
import { type PageTable, requireInt32, requirePageTable } from "./int32Arrays.ts";
import { fillGraphBuffers, MlaPlan, requireCacheType, requireQueryType, requireTensor } from "./mlaPlan.ts";

/** Options of the wrapper. With useCudaGraph, every batch has the size of the buffers, which take each plan's arrays. */
export interface BatchMLAOptions {
  readonly useCudaGraph?: boolean;
  readonly qoIndptr?: Int32Array;
  readonly kvIndptr?: Int32Array;
  readonly kvIndices?: Int32Array;
  readonly kvLenArr?: Int32Array;
  /** "auto" by default. The first three mean the same here; "cutlass" has limits and arguments of its own, and runs without a plan. */
  readonly backend?: "auto" | "fa2" | "fa3" | "cutlass";
}

/** Options of a run. */
export interface BatchMLARunOptions {
  /** Where to write; allocated if absent, and then the caller's to free (`ResultTensor.buffer`). */
  readonly out?: RowsTensor;
  readonly lse?: DeviceTensor;
  /** Also return the LSE, [rows, numHeads]; false by default. */
  readonly returnLse?: boolean;
  /** The LSE to base e in place of 2. */
  readonly returnLseBaseOnE?: boolean;
  /** For the backend "cutlass" alone: tokens and pages of each sequence. */
  readonly kvLen?: Int32Array;
  readonly pageTable?: PageTable;
  /** For 8-bit caches, and needed there: what both parts were divided by. */
  readonly kpeScale?: number;
  readonly ckvScale?: number;
  /** In place of ckvScale: [pages, pageSize, headDimCkv / 128] f32. */
  readonly ckvScaleArr?: DeviceTensor;
}

/** Latent attention: `plan` once a step, `run` once a layer. A row without keys becomes zeros with LSE -infinity. */
export class BatchMLAPagedAttentionWrapper {
  readonly device: CpuDevice;
  readonly #options: BatchMLAOptions;
  readonly #plan: MlaPlan;

  constructor(device: CpuDevice, options: BatchMLAOptions = {}) {
    const { backend = "auto" } = options;
    if (!["auto", "fa2", "fa3", "cutlass"].includes(backend)) {
      throw new ArgumentError(`backend = ${backend} must be auto, fa2, fa3 or cutlass`);
    }
    this.device = device;
    this.#options = options;
    this.#plan = new MlaPlan(device);
  }

  /**
   * @param qoIndptr [batch + 1]: rows of each sequence's queries
   * @param kvIndptr [batch + 1]: where its pages begin in kvIndices
   * @param kvLenArr [batch]: its tokens, the new ones included
   * @param headDimKpe 0 for layers without rope
   * @param causal Query i of n sees the tokens up to kvLen - n + i
   * @param smScale (qk nope + qk rope channels)^-0.5 before absorption; see `mlaSoftmaxScale`
   * @param qDataType "f32": queries and results are f32 here
   * @param useProfiler Must be false
   */
  plan(
    qoIndptr: Int32Array,
    kvIndptr: Int32Array,
    kvIndices: Int32Array,
    kvLenArr: Int32Array,
    numHeads: number,
    headDimCkv: number,
    headDimKpe: number,
    pageSize: number,
    causal: boolean,
    smScale: number,
    qDataType: "f32",
    kvDataType: ElementStorage,
    useProfiler = false,
  ): void {
    if (this.#options.backend === "cutlass") throw new ArgumentError("backend = cutlass runs without a plan");
    if (useProfiler) throw new ArgumentError("useProfiler = true is not supported: commands can be timed from outside");
    requireInteger("headDimKpe", headDimKpe, 0);
    requireQueryType("qDataType", qDataType);
    requireCacheType("kvDataType", kvDataType);
    const arrays = { qoIndptr, kvIndptr, kvIndices, kvLenArr };
    for (const [name, array] of Object.entries(arrays)) requireInt32(name, array);
    const numSeqs = kvLenArr.length;
    for (const name of ["qoIndptr", "kvIndptr"] as const) {
      requireInt32(name, arrays[name], numSeqs + 1, ", one more than kvLenArr");
    }
    if (this.#options.useCudaGraph)
      fillGraphBuffers({ ...this.#options, useCudaGraph: undefined, backend: undefined }, arrays, "kvIndices");
    this.#plan.plan(
      {
        ...{ numHeads, kvLoraRank: headDimCkv, qkRopeHeadDim: headDimKpe, pageSize, causal, smScale },
        storage: kvDataType,
      },
      listedBatch(arrays),
    );
  }

  /**
   * @param qNope [rows, numHeads, headDimCkv] f32: queries times W_UK
   * @param qPe [rows, numHeads, headDimKpe] f32, rotated; undefined for headDimKpe 0
   * @param ckvCache [pages, pageSize, headDimCkv]
   * @param kpeCache [pages, pageSize, headDimKpe], rotated; undefined for headDimKpe 0
   * @returns out as qNope, and lse if asked for. Rejects with ShapeError or ArgumentError naming what does not fit.
   */
  async run(
    qNope: DeviceTensor,
    qPe: DeviceTensor | undefined,
    ckvCache: DeviceTensor,
    kpeCache: DeviceTensor | undefined,
    options: BatchMLARunOptions = {},
  ): Promise<AttentionResult> {
    const { kvLen, pageTable, returnLse = false, returnLseBaseOnE = false, out, lse, ckvScaleArr } = options;
    if (this.#options.backend === "cutlass") this.#planCutlass(qNope, ckvCache, options);
    else if (kvLen || pageTable) {
      throw new ArgumentError(`${kvLen ? "kvLen" : "pageTable"} must be absent: it is for backend cutlass alone`);
    }
    const { spec, batch } = this.#plan.current;
    const { numHeads, kvLoraRank, qkRopeHeadDim, pageSize } = spec;
    const type = elementsOf(spec.storage);
    requireTensor("qNope", qNope, "f32", [batch.numRows, numHeads, kvLoraRank]);
    requireTensor("ckvCache", ckvCache, type, ["pages", pageSize, kvLoraRank]);
    for (const [name, tensor] of Object.entries({ qPe, kpeCache })) {
      if ((tensor === undefined) !== (qkRopeHeadDim === 0)) {
        throw new ArgumentError(`${name} must be given exactly if headDimKpe is not 0, which is ${qkRopeHeadDim}`);
      }
    }
    if (qPe) requireTensor("qPe", qPe, "f32", [batch.numRows, numHeads, qkRopeHeadDim]);
    if (kpeCache) requireTensor("kpeCache", kpeCache, type, ["pages", pageSize, qkRopeHeadDim]);
    const scales = checkScales(type, options);
    if (ckvScaleArr) {
      requireTensor("ckvScaleArr", ckvScaleArr, "f32", [ckvCache.shape[0], pageSize, Math.floor(kvLoraRank / 128)]);
      if (kvLoraRank % 128 !== 0)
        throw new ArgumentError(`headDimCkv = ${kvLoraRank} must be a multiple of 128 for ckvScaleArr`);
    }
    const storage: MlaStorage = ckvScaleArr ? "fp8Tiles" : type;
    const wanted = returnLse ? ({ returnLse, lseBase: returnLseBaseOnE ? "e" : "2" } as const) : {};
    const cache = { ckv: ckvCache, kpe: kpeCache, ckvScales: ckvScaleArr };
    return this.#plan.variant({ ...wanted, storage }).run({ qLatent: qNope, qPe, cache, out, lse, ...scales });
  }

  /** Gives all device memory back. */
  release(): void {
    this.#plan.release();
  }

  /** The backend's own way: one query a sequence, DeepSeek's dimensions and scale, 128 heads. */
  #planCutlass(
    qNope: DeviceTensor,
    ckvCache: DeviceTensor,
    { kvLen, pageTable, returnLse, lse }: BatchMLARunOptions,
  ): void {
    if (returnLse || lse) throw new ArgumentError(`${lse ? "lse" : "returnLse"} is not supported with backend cutlass`);
    if (!kvLen || !pageTable)
      throw new ArgumentError(`${kvLen ? "pageTable" : "kvLen"} must be given with backend cutlass`);
    const [numSeqs, numHeads] = qNope.shape;
    const [numPages, pageSize] = ckvCache.shape;
    if (numHeads !== 128) throw new ArgumentError(`qNope must have 128 heads with backend cutlass, got ${numHeads}`);
    if (qNope.shape[2] !== 512 || ckvCache.shape[2] !== 512) {
      throw new ArgumentError(
        `qNope and ckvCache must have 512 channels with backend cutlass, got ${qNope.shape[2]} and ${ckvCache.shape[2]}`,
      );
    }
    requireInt32("kvLen", kvLen, numSeqs, ", the rows of qNope");
    requirePageTable("pageTable", pageTable);
    const [rows, maxPages] = pageTable.shape;
    if (rows !== numSeqs)
      throw new ArgumentError(`pageTable must have a row for each of ${numSeqs} queries, got ${rows}`);
    if (maxPages % (128 / pageSize) !== 0) {
      throw new ArgumentError(
        `pageTable must have a multiple of 128 / pageSize = ${128 / pageSize} columns, got ${maxPages}`,
      );
    }
    const queryIndptr = Int32Array.from({ length: numSeqs + 1 }, (_, s) => s);
    const batch = {
      numRows: numSeqs,
      numSeqs,
      queryIndptr,
      kvLens: kvLen,
      blockTables: pageTable.values,
      maxPages,
      numPages,
      allowUnseeing: true,
    };
    const dims = { numHeads, kvLoraRank: 512, qkRopeHeadDim: 64, pageSize };
    this.#plan.plan({ ...dims, causal: false, smScale: (128 + 64) ** -0.5, storage: floatType(ckvCache) }, batch);
  }
}

function listedBatch({
  qoIndptr,
  kvIndptr,
  kvIndices,
  kvLenArr,
}: Record<"qoIndptr" | "kvIndptr" | "kvIndices" | "kvLenArr", Int32Array>): AttentionBatch {
  const numSeqs = kvLenArr.length;
  const listed = kvIndices.subarray(kvIndptr[0], kvIndptr[numSeqs]);
  return {
    numRows: qoIndptr[numSeqs],
    numSeqs,
    // Copies: a run may plan a variant later, when the caller's arrays are about the next step.
    queryIndptr: qoIndptr.slice(),
    kvLens: kvLenArr.slice(),
    blockTables: kvIndices.slice(),
    pageIndptr: kvIndptr.slice(),
    maxPages: 0,
    // The pool is not known before a run, which then has to have as many pages as the largest id needs.
    numPages: listed.reduce((most, page) => Math.max(most, page), -1) + 1,
    allowUnseeing: true,
  };
}

function checkScales(
  type: ElementStorage,
  { ckvScale, ckvScaleArr, kpeScale }: BatchMLARunOptions,
): Pick<BatchMLARunOptions, "ckvScale" | "kpeScale"> {
  const scales = { ckvScale, ckvScaleArr, kpeScale };
  if (type !== "f8e4m3") {
    for (const [name, scale] of Object.entries(scales)) {
      if (scale !== undefined) throw new ArgumentError(`${name} must be absent: kvDataType = ${type} has no scales`);
    }
    return {};
  }
  if ((ckvScale === undefined) === (ckvScaleArr === undefined)) {
    throw new ArgumentError("exactly one of ckvScale and ckvScaleArr must be given for kvDataType = f8e4m3");
  }
  if (kpeScale === undefined) throw new ArgumentError("kpeScale must be given for kvDataType = f8e4m3");
  return { ckvScale, kpeScale };
}

function floatType({ type }: DeviceTensor): ElementStorage {
  if (type === "f32" || type === "f16" || type === "bf16" || type === "f8e4m3") return type;
  throw new ArgumentError(`ckvCache.type = ${type} must be f32, f16, bf16 or f8e4m3`);
}

function elementsOf(storage: MlaStorage = "f32"): ElementStorage {
  if (storage === "fp8Token" || storage === "fp8Tiles")
    throw new ArgumentError(`storage ${storage} is not FlashInfer's`);
  return storage;
}
