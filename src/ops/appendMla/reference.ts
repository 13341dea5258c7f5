/** The append by its definition: two scatters of encoded rows. */
import { appendRows } from "../appendKv/index.ts";
import type { AppendMlaArgs, AppendMlaSpec } from "./contract.ts";

/** Writes ckv [tokens, kvLoraRank] and kpe [tokens, qkRopeHeadDim] to where the pages have them in `memory`, changed in place. */
export function appendMla(
  memory: Uint8Array,
  { kvLoraRank, qkRopeHeadDim, storage, ropeStorage = storage, encoding }: AppendMlaSpec,
  { ckv, kpe }: { readonly ckv: Float32Array; readonly kpe: Float32Array },
  slotMapping: ArrayLike<number>,
  { ckvPages, kpePages, scale }: Pick<AppendMlaArgs, "ckvPages" | "kpePages" | "scale">,
): void {
  const latents = { storage, numHeads: 1, channels: kvLoraRank, values: ckv, encoding, divisor: scale };
  appendRows(memory, latents, slotMapping, ckvPages);
  if (qkRopeHeadDim === 0 || !kpePages) return;
  const keys = { storage: ropeStorage, numHeads: 1, channels: qkRopeHeadDim, values: kpe, encoding, divisor: scale };
  appendRows(memory, keys, slotMapping, kpePages);
}
