import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { OutputText } from "./outputText.ts";
import { StopStrings } from "./stopStrings.ts";

/** The definition: for each end in turn, the longest stop string that ends there. */
function naive(text: string, stops: readonly string[]): string {
  for (let end = 1; end <= text.length; end++) {
    const found = stops.filter((stop) => text.slice(0, end).endsWith(stop)).sort((a, b) => b.length - a.length)[0];
    if (found !== undefined) return text.slice(0, end - found.length);
  }
  return text;
}

describe("StopStrings", () => {
  it("cuts where the definition does, however the text is cut into pieces", () => {
    const piece = fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 5 });
    const stop = fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 12 }), fc.array(stop, { maxLength: 3 }), (pieces, stops) => {
        const filter = new StopStrings(stops);
        let result = "";
        for (const part of pieces) {
          if (filter.found === undefined) result += filter.push(part);
        }
        if (filter.found === undefined) result += filter.flush();
        expect(result).toBe(naive(pieces.join(""), stops));
      }),
      { numRuns: 3000, seed: 4 },
    );
  });

  it("holds back only what may become a stop string", () => {
    const filter = new StopStrings(["END", "\n\n"]);
    expect(["a\n", "bE", "N", "T E"].map((piece) => filter.push(piece))).toEqual(["a", "\nb", "", "ENT "]);
    expect(filter.push("ND!")).toBe("");
    expect(filter.found).toBe("END");
  });

  it("refuses an empty stop string", () => {
    expect(() => new StopStrings(["x", ""])).toThrow('stop[1] = "" must have at least one character');
  });
});

describe("OutputText", () => {
  const letters = () => ({ push: (id: number) => String.fromCharCode(id), flush: () => "~" });

  it("flushes the decoder and the held text at the end", () => {
    const output = new OutputText(letters(), ["bcd"]);
    output.push(97);
    output.push(98);
    expect(output.take()).toBe("a");
    expect(output.finish()).toBe("b~");
  });

  it("ends before a stop string that spans tokens", () => {
    const output = new OutputText(letters(), ["bc"]);
    for (const id of [97, 98, 99]) output.push(id);
    expect(output.stop).toBe("bc");
    expect(output.finish()).toBe("a");
  });
});
