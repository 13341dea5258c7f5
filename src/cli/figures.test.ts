import { describe, expect, it } from "vitest";
import { formatBytes, formatCount, formatRate, formatSeconds, formatTable, plural } from "./figures.ts";

describe("figures", () => {
  it.each([
    [0, "0 B"],
    [999, "999 B"],
    [1000, "1.00 kB"],
    [5_598_080, "5.60 MB"],
    [253_113_024, "253 MB"],
    [999_600_000, "1.00 GB"],
  ])("writes %i bytes as %s", (value, text) => expect(formatBytes(value)).toBe(text));

  it.each([
    [4096, "4,096"],
    [5_278_976, "5.28 million"],
    [1_230_000_000, "1.23 billion"],
  ])("writes a count of %i as %s", (value, text) => expect(formatCount(value)).toBe(text));

  it.each([
    [0.00085, "850 µs"],
    [0.0123, "12.3 ms"],
    [0.9999, "1.00 s"],
    [4.2, "4.20 s"],
    [125, "2 min 5 s"],
    [119.9, "2 min 0 s"],
  ])("writes %f seconds as %s", (value, text) => expect(formatSeconds(value)).toBe(text));

  it("writes rates and counts", () => {
    expect([formatRate(0), formatRate(9.876), formatRate(98.34), formatRate(1204.4)]).toEqual([
      "0",
      "9.88",
      "98.3",
      "1,204",
    ]);
    expect([plural(1, "page"), plural(1200, "page")]).toEqual(["1 page", "1,200 pages"]);
  });

  it("aligns a table", () => {
    expect(
      formatTable([
        ["", "rate"],
        ["prefill", "9"],
        ["decode", "1,204"],
      ]),
    ).toBe("          rate\nprefill      9\ndecode   1,204");
  });
});
