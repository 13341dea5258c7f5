import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { formatCell, formatFigure, renderMarkdown, renderText } from "./render.ts";
import { type BenchResult, mapSpread, spread } from "./result.ts";

describe("figures", () => {
  it.each([
    [0, "0"],
    [16, "16"],
    [1234.5, "1,235"],
    [999.6, "1,000"],
    [98.76, "98.8"],
    [0.70449, "0.704"],
    [0.0123456, "0.0123"],
    [Number.NaN, "-"],
  ])("%d is written %s", (value, text) => {
    expect(formatFigure(value)).toBe(text);
  });

  it("of several runs are a median between the least and the most", () => {
    expect(spread([3, 1, 2])).toEqual({ median: 2, min: 1, max: 3 });
    expect(mapSpread(spread([2, 4, 8]), (seconds) => 8 / seconds)).toEqual({ median: 2, min: 1, max: 4 });
    expect(formatCell(spread([3, 1, 2.5]))).toBe("2.50 (1 to 3)");
  });
});

describe("a result", () => {
  const rows = [
    ["reading", 12.34],
    ["all", 100],
  ];
  const result: BenchResult = {
    name: "some",
    about: "Something.",
    tables: [{ title: "Table", columns: ["what", "GB/s"], rows }],
    remarks: ["It falls short."],
  };

  it("is a table in Markdown, figures on the right", () => {
    expect(renderMarkdown(result)).toBe(
      "Something.\n\n### Table\n\n| what | GB/s |\n| --- | --: |\n| reading | 12.3 |\n| all | 100 |\n\n- It falls short.",
    );
  });

  it("is aligned in a terminal", () => {
    expect(renderText(result)).toContain("Table\nwhat     GB/s\nreading  12.3\nall       100");
  });
});

describe("npm run bench", () => {
  const main = fileURLToPath(new URL("main.ts", import.meta.url));
  it.each([[[]], [["nonsense"]]])("with %j lists the names and ends with 2", (args) => {
    const { status, stderr } = spawnSync(process.execPath, [main, ...args], { encoding: "utf8" });
    expect(status).toBe(2);
    expect(stderr).toMatch(/^ {2}machine .*\n {2}model /m);
  });
});
