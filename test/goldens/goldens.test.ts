/**
 * Results of other people's code, on any machine: every case of selection.txt on the reference and on the CPU device. The whole
 * collection, with whole models, is run by `npm run goldens`.
 */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type GoldenTarget, isCaseFile } from "../../goldens/case.ts";
import { discover } from "../../goldens/discover.ts";
import { goldenOps, opGoldens } from "../../goldens/ops.ts";
import { CpuDevice } from "../../src/devices/index.ts";
import { readSelection } from "../../tools/copyGoldens.ts";

const folder = fileURLToPath(new URL("cases/", import.meta.url));
const cases = new Map(
  [...discover([folder])].map(({ path, json }) => [path.slice(folder.length, -".json".length), { path, json }]),
);
const isDeviceFree = (name: string): boolean => opGoldens.isDeviceFree?.(cases.get(name)?.json) ?? false;
const onHost = [...cases.keys()].filter(isDeviceFree);
const onDevices = [...cases.keys()].filter((name) => !isDeviceFree(name));

let cpu: CpuDevice;
beforeAll(async () => {
  cpu = await CpuDevice.create({ threads: 2 });
});
afterAll(() => cpu.close());

async function expectPass(name: string, target: GoldenTarget): Promise<void> {
  const found = cases.get(name);
  if (!found) throw new Error(`${name} is not among the copies`);
  const { failures } = await opGoldens.run(found.path, found.json, target);
  expect(failures).toEqual([]);
}

it("has copies of the selected cases and of no others", () => {
  const selection = readSelection(readFileSync(new URL("selection.txt", import.meta.url), "utf8"));
  expect([...cases.keys()]).toEqual(selection.sort());
});

it("has a case of every operation that has goldens", () => {
  const ops = new Set([...cases.values()].map(({ json }) => isCaseFile(json) && json.op));
  expect(ops).toEqual(new Set(goldenOps));
});

describe("golden cases of the host", () => {
  it.each(onHost)("%s", (name) => expectPass(name, { name: "reference" }));
});

describe("golden cases on the reference", () => {
  it.each(onDevices)("%s", (name) => expectPass(name, { name: "reference" }));
});

describe("golden cases on the CPU device", () => {
  it.each(onDevices)("%s", (name) => expectPass(name, { name: "cpu", device: cpu }));
});
