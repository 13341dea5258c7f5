/** What fewer bits gain: 8-bit and 4-bit pages against 16-bit ones, quantised latents of Palu against 16-bit ones, in the same turns. */

import { type PageStorage, tokenBytes } from "../../src/ops/attention/index.ts";
import type { Table } from "../result.ts";
import { AttentionLayers, llama3, storageName } from "./layers.ts";
import { repeat } from "./pages.ts";
import { grouped } from "./palu.ts";
import { PaluLayers } from "./paluLayers.ts";
import { type Ground, type Part, type PartResult, rateCells, rateColumns } from "./rates.ts";
import { takeTurns } from "./turns.ts";

const numSeqs = 8;
const kvLen = 4096;
const latentKeys = 16384;

const byGroups = (bits: 3 | 4 | 8, groupSize: number): PageStorage => ({ kind: "grouped", bits, groupSize });
const pageStorages: readonly PageStorage[] = [
  "f16",
  "f8e4m3",
  "f8e5m2",
  { kind: "tiled", tile: 128 },
  "i8",
  byGroups(8, 32),
  byGroups(4, 32),
  byGroups(4, 0),
];
const latentStorages: readonly PageStorage[] = ["f16", "f8e4m3", byGroups(8, 0), byGroups(4, 0), byGroups(3, 0)];

const columns = ["bytes a token", "of f16", "speed of f16", ...rateColumns];

export const storage: Part = {
  name: "storage",
  async run(ground: Ground): Promise<PartResult> {
    const tables = [await pages(ground)];
    for (const keys of ["rebuilt", "absorbed"] as const) tables.push(await latents(ground, keys));
    return { tables };
  },
};

async function pages({ limits }: Ground): Promise<Table> {
  const layers = pageStorages.map(
    (of) => new AttentionLayers(limits.device, { ...llama3, storage: of }, repeat(numSeqs, 1, kvLen)),
  );
  const bytes = pageStorages.map((of) => tokenBytes({ ...llama3, storage: of, causal: true }));
  const { times, limits: reached } = await takeTurns(limits, layers);
  const rows = layers.map(({ cost }, i) => [
    storageName(pageStorages[i]),
    bytes[i],
    bytes[i] / bytes[0],
    times[0].median / times[i].median,
    ...rateCells(times[i], cost, reached),
  ]);
  for (const layer of layers) layer.release();
  return { title: `Pages by storage: decode, ${numSeqs} of ${kvLen} keys, NHD`, columns: ["pages", ...columns], rows };
}

async function latents({ limits }: Ground, keys: "rebuilt" | "absorbed"): Promise<Table> {
  const [{ name, ranks }] = grouped;
  const layers = latentStorages.map(
    (of) => new PaluLayers(limits.device, { ranks, keys, storage: of, kvLen: latentKeys }),
  );
  const { times, limits: reached } = await takeTurns(limits, layers);
  const rows = layers.map(({ cost, tokenBytes: bytes }, i) => [
    storageName(latentStorages[i]),
    bytes,
    bytes / layers[0].tokenBytes,
    times[0].median / times[i].median,
    ...rateCells(times[i], cost, reached),
  ]);
  for (const layer of layers) layer.release();
  return {
    title: `Palu's latents by storage: decode, ${latentKeys} keys, ${name}, keys ${keys}`,
    columns: ["latents", ...columns],
    rows,
  };
}
