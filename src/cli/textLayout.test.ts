import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { fitWidth, printable, textWidth, wrapText } from "./textLayout.ts";

describe("textLayout", () => {
  it("takes out what would steer a terminal", () => {
    expect(printable("a\u001b[2Jb\u0007c\u009bd\te\nf")).toBe("a[2Jbcd\te\nf");
  });

  it("counts cells", () => {
    expect([textWidth("abc"), textWidth("日本"), textWidth("e\u0301"), textWidth("🦊")]).toEqual([3, 4, 1, 2]);
    expect([fitWidth("日本語", 5), fitWidth("abc", 2)]).toEqual(["日本", "ab"]);
  });

  it("wraps at spaces, and inside words that are too long", () => {
    expect(wrapText("the quick brown fox", 9)).toEqual(["the quick", "brown fox"]);
    expect(wrapText("abcdefghij k", 4)).toEqual(["abcd", "efgh", "ij k"]);
    expect(wrapText("one\n\ntwo", 9)).toEqual(["one", "two"]);
  });

  it("keeps every line within the width and every word in place, for any text", () => {
    fc.assert(
      fc.property(fc.string({ unit: "grapheme" }), fc.integer({ min: 2, max: 40 }), (text, width) => {
        const lines = wrapText(text, width);
        for (const line of lines) expect(textWidth(line)).toBeLessThanOrEqual(width);
        expect(lines.join("").replaceAll(/\s/g, "")).toBe(
          printable(text)
            .replaceAll(/[ \t\n]/g, "")
            .replaceAll(/\s/g, ""),
        );
      }),
    );
  });
});
