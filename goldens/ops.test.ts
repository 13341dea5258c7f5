import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CpuDevice } from "../src/devices/index.ts";
import type { GoldenTarget } from "./case.ts";
import { opGoldens } from "./ops.ts";

/** A few small cases, so that the runner is tested where the whole collection is not there. */
const folder = new URL("../test/fixtures/attention/goldens/", import.meta.url);
const cases = readdirSync(folder).filter((name) => name.endsWith(".json"));

let cpu: CpuDevice;
beforeAll(async () => {
  cpu = await CpuDevice.create({ threads: 2 });
});
afterAll(() => cpu.close());

function read(name: string): { path: string; json: { params: object; tolerance: object; outputs: object } } {
  const path = fileURLToPath(new URL(name, folder));
  return { path, json: JSON.parse(readFileSync(path, "utf8")) };
}

describe.each(["reference", "cpu"] as const)("golden cases on the %s", (name) => {
  const target = (): GoldenTarget => (name === "cpu" ? { name, device: cpu } : { name });

  it.each(cases)("passes %s", async (file) => {
    const { path, json } = read(file);
    expect(opGoldens.claims(path, json)).toBe(true);
    expect(await opGoldens.run(path, json, target())).toMatchObject({ failures: [] });
  });

  it("fails a case whose parameters are a little off", async () => {
    const { path, json } = read("small_window1.json");
    const { failures, worst } = await opGoldens.run(
      path,
      { ...json, params: { ...json.params, sm_scale: 0.126 } },
      target(),
    );
    expect(failures.join()).toContain("lse: ");
    expect(worst).toBeGreaterThan(1);
  });

  it("fails a case that wants an output nobody computes", async () => {
    const { path, json } = read("small_window1.json");
    const wanted = { ...json, outputs: { ...json.outputs, extra: { file: "x", key: "x", shape: [1], dtype: "f32" } } };
    expect((await opGoldens.run(path, wanted, target())).failures).toContain("output extra was not computed");
  });

  it("refuses an unknown op", async () => {
    const { path, json } = read("small_window1.json");
    await expect(opGoldens.run(path, { ...json, op: "telepathy" }, target())).rejects.toThrow("unknown op telepathy");
  });
});
