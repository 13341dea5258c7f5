import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CpuDevice } from "../src/devices/index.ts";
import type { GoldenTarget } from "./case.ts";
import { opGoldens } from "./ops.ts";

/** One of the cases that test/goldens runs: here it is changed, and must then fail. */
const file = new URL("../test/goldens/cases/ragged/small_window1.json", import.meta.url);

let cpu: CpuDevice;
beforeAll(async () => {
  cpu = await CpuDevice.create({ threads: 2 });
});
afterAll(() => cpu.close());

const path = fileURLToPath(file);
const json: { params: object; outputs: object } = JSON.parse(readFileSync(path, "utf8"));

describe.each(["reference", "cpu"] as const)("golden cases on the %s", (name) => {
  const target = (): GoldenTarget => (name === "cpu" ? { name, device: cpu } : { name });

  it("passes a case as it is", async () => {
    expect(opGoldens.claims(path, json)).toBe(true);
    expect(await opGoldens.run(path, json, target())).toMatchObject({ failures: [] });
  });

  it("fails a case whose parameters are a little off", async () => {
    const { failures, worst } = await opGoldens.run(
      path,
      { ...json, params: { ...json.params, sm_scale: 0.126 } },
      target(),
    );
    expect(failures.join()).toContain("lse: ");
    expect(worst).toBeGreaterThan(1);
  });

  it("fails a case that wants an output nobody computes", async () => {
    const wanted = { ...json, outputs: { ...json.outputs, extra: { file: "x", key: "x", shape: [1], dtype: "f32" } } };
    expect((await opGoldens.run(path, wanted, target())).failures).toContain("output extra was not computed");
  });

  it("refuses an unknown op", async () => {
    await expect(opGoldens.run(path, { ...json, op: "telepathy" }, target())).rejects.toThrow("unknown op telepathy");
  });
});
