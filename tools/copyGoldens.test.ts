import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { copyGoldens, readSelection } from "./copyGoldens.ts";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "kvasir-goldens-"));
  mkdirSync(join(root, "all/rope"), { recursive: true });
  const outputs = { y: { file: "a.safetensors" }, cos: { file: "a.safetensors" } };
  writeFileSync(join(root, "all/rope/a.json"), JSON.stringify({ outputs }));
  writeFileSync(join(root, "all/rope/a.safetensors"), "numbers");
});
afterEach(() => rmSync(root, { recursive: true }));

describe("readSelection", () => {
  it("takes a case from each line, but for comments", () => {
    expect(readSelection("# Rotary\nrope/a\n\n  rope/b\n")).toEqual(["rope/a", "rope/b"]);
  });

  it("refuses a case that is there twice", () => {
    expect(() => readSelection("rope/a\nrope/b\nrope/a")).toThrow("rope/a is selected twice");
  });
});

describe("copyGoldens", () => {
  it("replaces what was there by the cases and the files of their outputs", () => {
    const to = join(root, "copy");
    mkdirSync(join(to, "old"), { recursive: true });
    const numBytes = copyGoldens(join(root, "all"), ["rope/a"], to);
    expect(readFileSync(join(to, "rope/a.safetensors"), "utf8")).toBe("numbers");
    expect(numBytes).toBe(readFileSync(join(to, "rope/a.json")).length + "numbers".length);
    expect(existsSync(join(to, "old"))).toBe(false);
  });

  it("names a case that is missing, and leaves the copies alone", () => {
    const to = join(root, "copy");
    mkdirSync(join(to, "old"), { recursive: true });
    expect(() => copyGoldens(join(root, "all"), ["rope/b"], to)).toThrow("is rope/b a case of this collection?");
    expect(existsSync(join(to, "old"))).toBe(true);
  });
});
