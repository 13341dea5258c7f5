/** Golden cases of quantised rows: JAX's int8 and Palu's latents of few bits. */
import type { GroupedStorage } from "../src/ops/attention/storage.ts";
import type { GoldenCase, GoldenTarget } from "./case.ts";
import { decodeOn, encodeOn } from "./storedRows.ts";

type Outputs = Record<string, ArrayLike<number>>;

/** The case has the codes before they saturate too: of ours, only the largest number of a row can be told from its neighbour. */
export async function runInt8Quantize(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const [, channels] = golden.shape("x");
  const x = golden.input("x");
  const stored = await encodeOn(target, "i8", x, channels);
  const unsaturated = Array.from(stored.units, (code, i) => {
    const scale = stored.scales[Math.floor(i / channels)];
    return code === 127 && x[i] === scale ? 128 : code;
  });
  return {
    scale: stored.scales,
    weights_int32: unsaturated,
    weights: stored.units,
    weights_saturated: stored.units,
    dequantised: await decodeOn(target, "i8", stored, channels),
  };
}

/** Ours are stored without sign: a symmetric scheme's codes and zero points are 2^(bits - 1) larger than in the case. */
export async function runLatentQuant(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const [, channels] = golden.shape("x");
  const bits = golden.requiredNumber("bits");
  if (bits !== 2 && bits !== 3 && bits !== 4 && bits !== 8) throw new Error(`params.bits ${bits} is unknown`);
  const storage: GroupedStorage = { kind: "grouped", bits, groupSize: golden.requiredNumber("group_size") };
  const symmetric = golden.file.params.symmetric === true;
  const stored = await encodeOn(target, storage, golden.input("x"), channels, {
    range: symmetric ? "symmetric" : "values",
    clipRatio: golden.requiredNumber("clip_ratio"),
  });
  const midpoint = symmetric ? 2 ** (bits - 1) : 0;
  const dequantised = await decodeOn(target, storage, stored, channels);
  const scale = stored.scales.filter((_, i) => i % 2 === 0);
  const zero = stored.scales.filter((_, i) => i % 2 === 1);
  const groupSize = storage.groupSize || channels;
  return {
    scale,
    zero: zero.map((value) => value - midpoint),
    codes: Int32Array.from(dequantised, (value, i) => {
      const group = Math.floor(i / groupSize);
      return Math.round(value / scale[group]) + zero[group] - midpoint;
    }),
    dequantised,
  };
}
