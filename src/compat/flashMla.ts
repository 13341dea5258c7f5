/**
 * FlashMLA's flash_mla_with_kvcache: latent attention over a cache of whole rows, dense over page tables or sparse over lists of tokens. With
 * its names, layouts and defaults; the LSE is natural, [batch, heads, queries], and +infinity for a row that sees nothing.
 */
import type { ResultTensor } from "../attention/index.ts";
import { allocateResult } from "../attention/results.ts";
import type { CpuDevice } from "../devices/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { ArgumentError, ShapeError } from "../tensor/index.ts";
import { requireAxes, requireType } from "./attendOnce.ts";
import type { FlashMlaCall, FlashMlaOptions } from "./flashMlaCall.ts";
import { recordFlashMlaDense } from "./flashMlaDense.ts";
import type { FlashMLASchedMeta } from "./flashMlaMetadata.ts";
import { recordFlashMlaSparse } from "./flashMlaSparse.ts";
import type { PageTable } from "./int32Arrays.ts";

/** Both allocated, and the caller's to free (`ResultTensor.buffer`). */
export interface FlashMlaResult {
  /** [batch, queries, heads, headDimV] f32 */
  readonly out: ResultTensor;
  /** [batch, heads, queries] f32 */
  readonly lse: ResultTensor;
}

/**
 * @param q [batch, queries, heads, 576 or 512] f32, dense: absorbed and rotated
 * @param kCache [pages, 64, kv heads, as q] of any floating-point type, or with isFp8Kvcache u8 [pages, 64, 1, 656]
 * @param blockTable [batch, maxPages]; undefined for sparse attention
 * @param cacheSeqlens [batch]: tokens of each sequence, the new ones included; undefined for sparse attention
 * @param headDimV 512: values are the first channels of the keys
 * @returns Rejects with ShapeError or ArgumentError naming what does not fit.
 */
export async function flashMlaWithKvcache(
  device: CpuDevice,
  q: DeviceTensor,
  kCache: DeviceTensor,
  blockTable: PageTable | undefined,
  cacheSeqlens: Int32Array | undefined,
  headDimV: number,
  tileSchedulerMetadata: FlashMLASchedMeta,
  options: FlashMlaOptions = {},
): Promise<FlashMlaResult> {
  requireAxes("q", q, "batch, queries, heads, channels");
  requireType("q", q, "f32");
  const [batch, queries, heads, channels] = q.shape;
  if (channels !== 576 && channels !== 512) throw new ShapeError(`q.shape[3] = ${channels} must be 576 or 512`);
  if (headDimV !== 512) throw new ArgumentError(`headDimV = ${headDimV} must be 512`);
  const { softmaxScale = channels ** -0.5, isFp8Kvcache = false, indices } = options;
  const allocated: ResultTensor[] = [];
  const allocate = (label: string, shape: readonly number[]): ResultTensor => {
    const tensor = allocateResult(device, `flash mla ${label}`, shape);
    allocated.push(tensor);
    return tensor;
  };
  const commands = device.commands();
  let kept: readonly ResultTensor[] = [];
  try {
    const out = allocate("out", [batch, queries, heads, headDimV]);
    const lse = allocate("lse", [batch, heads, queries]);
    const scratch = (shape: readonly number[]) => allocate("scratch", shape);
    const shape = { batch, queries, heads, channels, headDimV };
    const metadata = tileSchedulerMetadata;
    const call: FlashMlaCall = { device, q, ...shape, softmaxScale, isFp8Kvcache, options, metadata, out, scratch };
    const recorder = { device, commands };
    const lses = indices
      ? [recordFlashMlaSparse(recorder, call, kCache, indices)]
      : recordFlashMlaDense(recorder, call, kCache, blockTable, cacheSeqlens);
    await device.run(commands);
    writeLse(call, lses, lse);
    kept = [out, lse];
    return { out, lse };
  } finally {
    commands.free();
    for (const tensor of allocated) if (tensor.buffer && !kept.includes(tensor)) device.free(tensor.buffer);
  }
}

/** On the host: the heads of each kv head side by side become [batch, heads, queries], and rows without keys +infinity. */
function writeLse(
  { device, batch, queries, heads }: FlashMlaCall,
  parts: readonly DeviceTensor[],
  lse: DeviceTensor,
): void {
  const target = device.f32At(lse.pointer, batch * heads * queries);
  const group = heads / parts.length;
  for (const [part, { pointer }] of parts.entries()) {
    const values = device.f32At(pointer, batch * queries * group);
    for (const [at, value] of values.entries()) {
      const [row, head] = [Math.floor(at / group), part * group + (at % group)];
      const [b, i] = [Math.floor(row / queries), row % queries];
      target[(b * heads + head) * queries + i] = value === -Infinity ? Infinity : value;
    }
  }
}
