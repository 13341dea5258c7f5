/**
 * Keys and values of every head from the latents of some tokens: gathered from their pages, rotated where the cache is not, multiplied with
 * W_UK and W_UV, and the one rope key put behind the keys of all heads. Which tokens, and what attends them, is rebuilt.ts's business.
 */
import { recordCopyHeads } from "../../ops/copyHeads/index.ts";
import type { DeviceTensor } from "../../ops/elementwise/index.ts";
import { recordGatherSlots } from "../../ops/gatherSlots/index.ts";
import { type HeadsTensor, recordHeadProjection } from "../../ops/headProjection/index.ts";
import type { Recorder } from "../../ops/recorder.ts";
import { ropeKernel } from "../../ops/rope/index.ts";
import type { AbsorbedMlaSpec } from "./absorbed.ts";
import type { LatentRows } from "./cache.ts";
import type { MlaDims } from "./dims.ts";
import type { Workspace } from "./workspace.ts";

/** What the keys are rebuilt from: the places of both parts in the cache, the weight, and the cos/sin rows of an unrotated cache. */
export interface RebuiltSources {
  readonly ckv: LatentRows;
  readonly kpe: LatentRows;
  /** [numHeads * (qkNopeHeadDim + vHeadDim), kvLoraRank] f32 */
  readonly kvBProj: DeviceTensor;
  readonly ropeTable: number | undefined;
}

/** The tokens: addresses of their slots (page * pageSize + offset) and absolute positions, i32 [numTokens] each. */
export interface RebuiltTokens {
  readonly numTokens: number;
  readonly slots: number;
  readonly positions: number;
}

/**
 * Records the rebuilding into the workspace: "keys" [tokens, numHeads, qkNopeHeadDim + qkRopeHeadDim] and "values" [tokens, numHeads,
 * vHeadDim], by way of "latents" and "rope keys". All four have to have room.
 */
export function recordRebuiltKeys(
  recorder: Recorder,
  spec: MlaDims & Pick<AbsorbedMlaSpec, "pageSize" | "rope">,
  workspace: Workspace,
  { ckv, kpe, kvBProj, ropeTable }: RebuiltSources,
  { numTokens, slots, positions }: RebuiltTokens,
): void {
  if (numTokens === 0) return;
  const { numHeads, kvLoraRank: columns, qkNopeHeadDim, qkRopeHeadDim, vHeadDim, pageSize } = spec;
  const gather = ({ storage, channels, pointer, ...places }: LatentRows, out: DeviceTensor, overlap: boolean): void => {
    const list: DeviceTensor = { pointer: slots, shape: [numTokens], type: "i32" };
    const args = { pages: pointer, ...places, slots: list, out };
    recordGatherSlots(recorder, { storage, channels, pageSize }, args, { overlap });
  };
  const latents = workspace.tensor("latents", [numTokens, columns]);
  const ropeKeys = workspace.tensor("rope keys", [numTokens, qkRopeHeadDim]);
  gather(ckv, latents, qkRopeHeadDim > 0);
  if (qkRopeHeadDim > 0) gather(kpe, ropeKeys, false);
  if (ropeTable !== undefined) {
    const x: HeadsTensor = { ...ropeKeys, shape: [numTokens, 1, qkRopeHeadDim], headStride: qkRopeHeadDim };
    recordRotation(recorder, spec, { x, positions, table: ropeTable, numTokens });
  }
  const x: HeadsTensor = { ...latents, shape: [numTokens, numHeads, columns], headStride: 0 };
  const keys = workspace.tensor("keys", [numTokens, numHeads, qkNopeHeadDim]);
  const out: HeadsTensor = { ...keys, headStride: qkNopeHeadDim + qkRopeHeadDim };
  const headRows = qkNopeHeadDim + vHeadDim;
  const expandKeys = { kind: "expand", rows: qkNopeHeadDim, columns } as const;
  recordHeadProjection(recorder, expandKeys, { x, weight: kvBProj, headRows, out }, { overlap: true });
  if (qkRopeHeadDim > 0) {
    const shape = [numTokens, numHeads, qkRopeHeadDim];
    const tails: HeadsTensor = { ...out, pointer: keys.pointer + qkNopeHeadDim * 4, shape };
    const shared: HeadsTensor = { ...ropeKeys, shape, headStride: 0 };
    recordCopyHeads(recorder, { channels: qkRopeHeadDim }, { x: shared, out: tails }, { overlap: true });
  }
  const values = workspace.tensor("values", [numTokens, numHeads, vHeadDim]);
  const expandValues = { kind: "expand", rows: vHeadDim, columns } as const;
  recordHeadProjection(recorder, expandValues, {
    x,
    weight: kvBProj,
    firstRow: qkNopeHeadDim,
    headRows,
    out: values,
  });
}

/** Records the rotation of the qkRopeHeadDim channels of `x` [tokens, heads, qkRopeHeadDim], in place. Nothing for a spec without rope. */
export function recordRotation(
  { device, commands }: Recorder,
  { rope, qkRopeHeadDim: rotaryDim }: Pick<AbsorbedMlaSpec, "rope" | "qkRopeHeadDim">,
  args: {
    readonly x: HeadsTensor;
    readonly positions: number;
    readonly table: number;
    readonly numTokens: number;
  },
): void {
  if (!rope) return;
  const { x, positions, table, numTokens } = args;
  const numHeads = x.shape[1];
  const { headStride: headDim = rotaryDim } = x;
  const kernel = device.compile(ropeKernel, { headDim, rotaryDim, style: rope.style });
  commands.launch(kernel, { x: x.pointer, positions, table, numHeads, rowStride: numHeads * headDim }, numTokens);
}
