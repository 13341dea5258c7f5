import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { afterEach, describe, expect, it } from "vitest";
import type { AlphabetOptions } from "../../test/fixtures/engine/alphabet.ts";
import { startNodeWorker } from "./channel.node.ts";
import { Engine } from "./engine.ts";
import type { LoadOptions } from "./types.ts";

const fixture = new URL("../../test/fixtures/engine/alphabetWorker.node.ts", import.meta.url);
const open: Engine[] = [];

async function start(model: AlphabetOptions | string = {}, options: LoadOptions = {}): Promise<Engine> {
  const name = typeof model === "string" ? model : JSON.stringify(model);
  const engine = await Engine.connect(startNodeWorker(fixture), name, options);
  open.push(engine);
  return engine;
}

afterEach(async () => {
  await Promise.all(open.splice(0).map((engine) => engine.close()));
});

describe("an engine in a worker thread", () => {
  it("generates, several requests at once", async () => {
    const engine = await start();
    const texts = await Promise.all(["t", "u", "v"].map(async (prompt) => (await engine.complete({ prompt })).text));
    expect(texts).toEqual(["uvwxyz", "vwxyz", "wxyz"]);
  });

  it("takes a cancellation between two steps", async () => {
    const engine = await start({ stepMs: 5 });
    for await (const { text } of engine.generate({ prompt: "a", maxTokens: 4000, ignoreEos: true })) {
      if (text === "d") break;
    }
    await expect.poll(() => engine.stats()).toMatchObject({ numRunning: 0, usedPages: 0 });
    expect((await engine.stats()).generatedTokens).toBeLessThan(20);
  });

  it("rejects every pending call when the worker dies, and every later one", async () => {
    const engine = await start();
    const running = engine.complete({ prompt: "a", maxTokens: 4000, ignoreEos: true });
    await Promise.all([
      expect(running).rejects.toThrow("the engine's worker has died: it exited with code 3"),
      expect(engine.complete({ prompt: "$" })).rejects.toThrow("the engine's worker has died"),
    ]);
    await expect(engine.tokenize("a")).rejects.toThrow("the engine's worker has died");
    await engine.close();
  });

  it("rejects the load when the model or the worker's file is missing", async () => {
    await expect(start("missing")).rejects.toThrow("no such model: missing");
    const nowhere = new URL("./nowhere.node.ts", import.meta.url);
    await expect(Engine.connect(startNodeWorker(nowhere), "x")).rejects.toThrow("Cannot find module");
  });

  it("aborts a load by signal", async () => {
    const controller = new AbortController();
    const loading = start("slow to load", { signal: controller.signal });
    controller.abort(new Error("changed my mind"));
    await expect(loading).rejects.toThrow("changed my mind");
  });

  it("lets the process end, closed or idle", async () => {
    const program = (end: string) => `
      import { Engine } from ${JSON.stringify(new URL("./engine.ts", import.meta.url).href)};
      import { startNodeWorker } from ${JSON.stringify(new URL("./channel.node.ts", import.meta.url).href)};
      const engine = await Engine.connect(startNodeWorker(new URL(${JSON.stringify(fixture.href)})), "{}");
      console.log((await engine.complete({ prompt: "w" })).text);
      ${end}`;
    const run = (end: string) =>
      promisify(execFile)(process.execPath, ["--input-type=module", "-e", program(end)], { timeout: 20_000 });
    const [closed, idle] = await Promise.all([run("await engine.close();"), run("")]);
    expect([closed.stdout, idle.stdout]).toEqual(["xyz\n", "xyz\n"]);
  }, 30_000);
});
