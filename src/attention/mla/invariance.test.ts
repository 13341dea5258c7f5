/** What else is in a batch cannot be seen in the bits of a sequence, in either form. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { normals } from "../../../test/ops/testDevice.ts";
import { CpuDevice } from "../../devices/index.ts";
import { createTensor, readTensor } from "../deviceTensors.ts";
import { type BatchSequence, batchOf } from "../sequences.ts";
import { BatchMLAPagedAttention } from "./index.ts";

const dims = { numHeads: 3, kvLoraRank: 40, qkRopeHeadDim: 8, qkNopeHeadDim: 16, vHeadDim: 12, pageSize: 4 };

describe("a sequence of latent attention", () => {
  let device: CpuDevice;
  beforeAll(async () => {
    device = await CpuDevice.create({ threads: 2 });
  });
  afterAll(() => device.close());

  it.each(["rebuilt", "absorbed"] as const)("has the same bits alone and in company, %s", async (form) => {
    const f32 = (seed: number, ...shape: number[]) =>
      createTensor(
        device,
        "f32",
        shape,
        normals(
          shape.reduce((a, b) => a * b),
          seed,
        ),
      );
    const cache = { ckv: f32(1, 40, 4, 40), kpe: f32(2, 40, 4, 8) };
    const kvBProj = f32(3, 3 * (16 + 12), 40);
    const queries = { qNope: f32(4, 3, 3, 16), qPe: f32(5, 3, 3, 8) };
    const attention = new BatchMLAPagedAttention(device, {
      ...{ ...dims, form, causal: true, smScale: 24 ** -0.5, returnLse: true, rebuiltTokens: 16 },
    });
    const own: BatchSequence = { queryLen: 3, kvLen: 77, pages: Array.from({ length: 20 }, (_, i) => (i * 7) % 20) };
    const rowsOf = async (before: readonly BatchSequence[]) => {
      const firstRow = before.reduce((sum, { queryLen }) => sum + queryLen, 0);
      attention.plan(batchOf([...before, own], 40));
      const numRows = firstRow + 3;
      const [qNope, qPe] = [f32(6, numRows, 3, 16), f32(7, numRows, 3, 8)];
      for (const [to, from] of [
        [qNope, queries.qNope],
        [qPe, queries.qPe],
      ]) {
        const width = 3 * from.shape[2];
        device.f32At(to.pointer + firstRow * width * 4, 3 * width).set(readTensor(device, from));
      }
      const { out, lse } = await attention.run({ qNope, qPe, kvBProj, cache });
      const last = [out, lse].map((x) => x && readTensor(device, x).slice(firstRow * (x === out ? 36 : 3)));
      return last.map((x) => x && Array.from(x));
    };
    const alone = await rowsOf([]);
    const pages = Array.from({ length: 20 }, (_, i) => 20 + i);
    for (const kvLen of [5, 21, 70]) {
      expect(await rowsOf([{ queryLen: 2, kvLen, pages: pages.slice(0, Math.ceil(kvLen / 4)) }])).toEqual(alone);
    }
    attention.release();
  });
});
