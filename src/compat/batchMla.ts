/**
 * FlashInfer's BatchMLAPagedAttentionWrapper: absorbed queries, any number for each sequence, over latents and rotated rope keys. In the
 * form of separate tensors and lists of pages; the LSE is to base 2 unless asked for otherwise. There is no workspace to bring, no profiler
 * buffer and no scale of 8-bit results (`oScale`): results are f32.
 */
import type { AttentionResult, MlaStorage } from "../attention/index.ts";
import type { CpuDevice } from "../devices/index.ts";
import { type ElementStorage, requireInteger } from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { ArgumentError } from "../tensor/index.ts";
import { cutlassPlan } from "./batchMlaCutlass.ts";
import { type BatchMLAOptions, type BatchMLARunOptions, checkScales } from "./batchMlaOptions.ts";
import { listedBatch } from "./flashinferPages.ts";
import { requireInt32 } from "./int32Arrays.ts";
import { cacheType, fillGraphBuffers, MlaPlan, requireQueryType, requireTensor } from "./mlaPlan.ts";

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
    requireInteger("headDimCkv", headDimCkv, 1);
    requireInteger("headDimKpe", headDimKpe, 0);
    requireQueryType("qDataType", qDataType);
    const storage = cacheType("kvDataType", kvDataType);
    const arrays = { qoIndptr, kvIndptr, kvIndices, kvLenArr };
    for (const [name, array] of Object.entries(arrays)) requireInt32(name, array);
    const numSeqs = kvLenArr.length;
    for (const name of ["qoIndptr", "kvIndptr"] as const) {
      requireInt32(name, arrays[name], numSeqs + 1, ", one more than kvLenArr");
    }
    if (this.#options.useCudaGraph) {
      const { useCudaGraph: _, backend: __, ...buffers } = this.#options;
      fillGraphBuffers(buffers, arrays, "kvIndices");
    }
    const dims = { numHeads, kvLoraRank: headDimCkv, qkRopeHeadDim: headDimKpe, pageSize };
    const lists = { queryIndptr: qoIndptr, kvLens: kvLenArr, indptr: kvIndptr, indices: kvIndices };
    this.#plan.plan({ ...dims, causal, smScale, storage }, listedBatch(lists));
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
    if (this.#options.backend === "cutlass") {
      const { spec, batch } = cutlassPlan(qNope, ckvCache, options);
      this.#plan.plan(spec, batch);
    } else if (kvLen || pageTable) {
      throw new ArgumentError(`${kvLen ? "kvLen" : "pageTable"} must be absent: it is for backend cutlass alone`);
    }
    const { spec, batch } = this.#plan.current;
    const { numHeads, kvLoraRank, qkRopeHeadDim, pageSize, storage: type } = spec;
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
      if (kvLoraRank % 128 !== 0) {
        throw new ArgumentError(`headDimCkv = ${kvLoraRank} must be a multiple of 128 for ckvScaleArr`);
      }
      requireTensor("ckvScaleArr", ckvScaleArr, "f32", [ckvCache.shape[0], pageSize, kvLoraRank / 128]);
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
}
