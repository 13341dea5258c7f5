/** What bundlers make of the package. That the result works in a browser is for smoke.ts, which needs one. */

import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { bundlePage } from "./bundlePage.ts";

const folder = mkdtempSync(join(tmpdir(), "kvasir-bundle-"));
afterAll(() => rmSync(folder, { recursive: true }));
beforeAll(() => bundlePage(folder, "src"));

const assets = (): string[] => readdirSync(join(folder, "assets"));
const read = (name: string): string => readFileSync(join(folder, "assets", name), "utf8");

it("finds both workers: the page starts the engine's, and that the device's", () => {
  const workers = assets().filter((name) => name.startsWith("worker.web-"));
  expect(workers).toHaveLength(2);
  const [page] = assets().filter((name) => name.startsWith("page-"));
  const [engineWorker] = workers.filter((name) => read(page).includes(name));
  const [deviceWorker] = workers.filter((name) => name !== engineWorker);
  expect(read(engineWorker)).toContain(deviceWorker);
});
