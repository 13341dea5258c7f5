/** The program as a whole: exit codes, pipes, Ctrl-C, JSON. What the commands compute is tested in their layers. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { kvasir, root } from "./program.ts";

describe("the command line", () => {
  it.each([
    [["--help"], 0, "inspect-kernel"],
    [["run", "--help"], 0, "--max-tokens"],
  ] as [string[], number, string][])("answers %j", async (words, code, text) => {
    const outcome = await kvasir(words);
    expect(outcome).toMatchObject({ code, stderr: "" });
    expect(outcome.stdout).toContain(text);
  });

  it("says its version", async () => {
    const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
    expect(await kvasir(["--version"])).toEqual({ code: 0, stdout: `${version}\n`, stderr: "" });
  });

  it.each([
    [[], "COMMANDS"],
    [["rnu"], 'unknown command "rnu"'],
    [["run", "--tempreature", "1", "x"], "unknown option --tempreature"],
    [["run", "--seed", "one", "x"], '--seed must be a whole number, got "one"'],
    [["run", "--device", "tpu", "x"], "tpu"],
    [["run"], "a prompt is missing"],
    [["eval"], "TEXT is missing"],
    [["inspect-kernel", "nothing"], 'no kernel "nothing": there are embedding'],
  ] as [string[], string][])("calls %j bad usage", async (words, text) => {
    const outcome = await kvasir(words);
    expect(outcome).toMatchObject({ code: 2, stdout: "" });
    expect(outcome.stderr).toContain(text);
  });

  it.each([
    [["run", "gone.gguf", "x"], 'no model "gone.gguf": there is no such file or folder'],
    [["run", "--max-num-tokens", "16", "word ".repeat(100)], "16"],
    [["eval", "gone.txt"], 'no text file "gone.txt"'],
  ] as [string[], string][])("fails on %j with one message and no stack", async (words, text) => {
    const outcome = await kvasir(words);
    expect(outcome).toMatchObject({ code: 1, stdout: "" });
    expect(outcome.stderr).toContain(text);
    expect(outcome.stderr).not.toContain("    at ");
  });
});

describe("run", () => {
  it("continues a prompt, the same for the same seed, also from standard input", async () => {
    const words = ["--max-tokens", "12", "--seed", "3"];
    const { code, stdout, stderr } = await kvasir(["run", "Once upon a time", ...words]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout.trim().length).toBeGreaterThan(10);
    expect(await kvasir(["run", ...words], { input: "Once upon a time" })).toEqual({ code, stdout, stderr });
  });

  it("prints one JSON object for several prompts and samples", async () => {
    const { code, stdout } = await kvasir([
      "run",
      "The fox",
      "The wolf",
      "--samples",
      "2",
      "--json",
      "--max-tokens",
      "5",
      "--logprobs",
      "1",
    ]);
    expect(code).toBe(0);
    const { results, stats, threads } = JSON.parse(stdout) as {
      results: {
        prompt: string;
        samples: { tokenIds: number[]; logprobs: { top: object[] }[]; usage: { completionTokens: number } }[];
      }[];
      stats: { numFinished: number; usedPages: number };
      threads: number;
    };
    expect(results.map(({ prompt, samples }) => [prompt, samples.map(({ tokenIds }) => tokenIds.length)])).toEqual([
      ["The fox", [5, 5]],
      ["The wolf", [5, 5]],
    ]);
    expect(results[0].samples[0].logprobs).toHaveLength(5);
    expect(stats.usedPages).toBe(0);
    expect(threads).toBeGreaterThan(0);
  });

  it("ends cleanly on Ctrl-C", async () => {
    let isSent = false;
    const outcome = await kvasir(["run", "Once upon a time", "--max-tokens", "900", "--temperature", "0"], {
      onOutput(_, kill) {
        if (!isSent) kill("SIGINT");
        isSent = true;
      },
    });
    expect(outcome.code).toBe(130);
    expect(outcome.stderr).toBe("interrupted\n");
  });
});

describe("the other commands", () => {
  it("tells eight tales in a pipe and ends by itself", async () => {
    const { code, stdout, stderr } = await kvasir(["demo", "--max-tokens", "40"]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    for (let tale = 1; tale <= 8; tale++) expect(stdout).toContain(`[${tale}] `);
    expect(stdout).not.toContain("\u001b");
    expect(stdout).toMatch(/8 tales, 320 tokens in .* tokens\/s in all/);
    const [, cached, prompt] = /prefix cache: ([\d,]+) of ([\d,]+) prompt tokens were there/.exec(stdout) ?? [];
    expect(Number(cached.replace(",", "")) / Number(prompt.replace(",", ""))).toBeGreaterThan(0.8);
    expect(stdout).toMatch(/Try next:\n {2}npm run kvasir -- .*\n {2}npm run kvasir -- .*\n$/);
  });

  it("converses in a pipe", async () => {
    const { code, stdout, stderr } = await kvasir(["chat", "--max-tokens", "8", "--seed", "1"], {
      input: "There was a fox\n\n/clear\nAnd then\n",
    });
    expect(code).toBe(0);
    expect(stdout.trimEnd().split("\n").length).toBeGreaterThanOrEqual(2);
    expect(stderr).toContain("no chat template");
  });

  it("measures perplexity", async () => {
    const { code, stdout } = await kvasir(["eval", "README.md", "--json"]);
    expect(code).toBe(0);
    const { perplexity, meanNll, numBytes } = JSON.parse(stdout) as Record<string, number>;
    expect(perplexity).toBeCloseTo(Math.exp(meanNll), 6);
    expect(numBytes).toBe(readFileSync(join(root, "README.md")).length);
  });

  it("describes the bundled model", async () => {
    const { code, stdout } = await kvasir(["inspect", "--json"]);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      architecture: "llama",
      numParameters: 5_278_976,
      numKvHeads: 2,
      numLayers: 6,
      cacheBytesPerToken: 1536,
    });
  });

  it("says what the machine offers", async () => {
    const { code, stdout } = await kvasir(["doctor", "--json"]);
    expect(code).toBe(0);
    const { findings } = JSON.parse(stdout) as { findings: { name: string; state: string }[] };
    expect(findings.map(({ name }) => name)).toEqual(
      expect.arrayContaining(["Node", "SIMD", "relaxed SIMD", "shared memory", "C compiler", "WebGPU"]),
    );
  });

  it("measures speed in the agreed form", { timeout: 120_000 }, async () => {
    const { code, stdout } = await kvasir(["bench", "--json", "--repeat", "1"]);
    expect(code).toBe(0);
    const result = JSON.parse(stdout) as { rows: { name: string; sequences: number }[] };
    expect(Object.keys(result)).toEqual(["model", "device", "threads", "loadSeconds", "peakMemoryBytes", "rows"]);
    for (const row of result.rows) {
      expect(Object.keys(row)).toEqual([
        "name",
        "promptTokens",
        "contextTokens",
        "sequences",
        "tokensPerSecond",
        "seconds",
      ]);
    }
    // The bundled model's context of 1,024 tokens leaves out the longer rows.
    expect(result.rows.map(({ name, sequences }) => `${name} ${sequences}`)).toEqual([
      ...["prefill 1", "prefill 1", "decode 1"],
      ...["concurrent 1", "concurrent 2", "concurrent 4", "concurrent 8", "concurrent 16"],
    ]);
  });
});
