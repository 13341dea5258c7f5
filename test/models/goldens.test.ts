/**
 * One golden case of whole models that is committed, so that the logits of a real implementation are checked wherever the tests run; and
 * that the runner of such cases notices what is wrong.
 */

import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import { golden } from "../../goldens/models.ts";

const fixtures = fileURLToPath(new URL("../fixtures/models/", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "kvasir-golden-"));
afterAll(() => rmSync(folder, { recursive: true }));

interface Expected {
  prompts: { greedy: number[]; logprobs: number[] }[];
  text: { mean_nll: number };
}

/** Runs the case with its expectation changed. */
async function judge(change: (expected: Expected) => void) {
  cpSync(fixtures, folder, { recursive: true });
  const path = join(folder, "llama_mixed.json");
  const expected: Expected = JSON.parse(readFileSync(path, "utf8"));
  change(expected);
  writeFileSync(path, JSON.stringify(expected));
  expect(golden.claims(path, expected)).toBe(true);
  return golden.run(path, expected, { name: "reference" });
}

describe("a GGUF file of seven tensor types, computed by transformers", () => {
  it("gives its logits, log-probabilities and greedy texts, alone and in one ragged batch", async () => {
    const { failures, worst } = await judge(() => {});
    expect(failures).toEqual([]);
    expect(worst).toBeGreaterThan(0);
    expect(worst).toBeLessThan(0.1);
  });

  it("fails where a number, a token or a mean is another", async () => {
    const { failures } = await judge(({ prompts, text }) => {
      prompts[0].logprobs[3] += 0.02;
      prompts[1].greedy[23] ^= 1;
      text.mean_nll += 0.02;
    });
    expect(failures.map((failure) => failure.split(":")[0])).toEqual([
      "p9 logprobs",
      "p37 greedy",
      "p37 greedy logprobs",
      "text mean_nll",
    ]);
  });

  it("leaves alone what is no model", () => {
    expect(golden.claims("chat.json", { cases: [] })).toBe(false);
    expect(golden.claims("case.json", { op: "rope", outputs: {}, tolerance: {} })).toBe(false);
    expect(golden.claims("null.json", null)).toBe(false);
  });
});
