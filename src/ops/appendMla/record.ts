/** The function that records an append of latents and rope keys. The kernel is that of ops/appendKv. */
import { type AppendKvSpec, recordAppendKv } from "../appendKv/index.ts";
import type { Recorder } from "../recorder.ts";
import type { AppendMlaArgs, AppendMlaSpec } from "./contract.ts";

const names = {
  k: "ckv",
  v: "kpe",
  kPages: "ckvPages",
  vPages: "kpePages",
  headDim: "kvLoraRank",
  headDimV: "qkRopeHeadDim",
};

/** Records the append of one layer. Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function recordAppendMla(recorder: Recorder, spec: AppendMlaSpec, args: AppendMlaArgs): void {
  const { kvLoraRank, qkRopeHeadDim, storage, ropeStorage = storage, encoding } = spec;
  const { ckv, kpe, ckvPages, kpePages, slotMapping, numTokens, scale } = args;
  const kvSpec: AppendKvSpec = {
    numKvHeads: 1,
    headDim: kvLoraRank,
    headDimV: qkRopeHeadDim,
    storage,
    valueStorage: ropeStorage,
    encoding,
  };
  const keysAndValues = {
    k: ckv,
    v: kpe,
    kPages: ckvPages,
    vPages: kpePages,
    slotMapping,
    numTokens,
    kScale: scale,
    vScale: scale,
  };
  recordAppendKv(recorder, kvSpec, keysAndValues, names);
}
