import { describe, expect, it } from "vitest";
import { randomTokens, spread } from "./benchRows.ts";
import { UsageError } from "./exit.ts";
import {
  loadOptions,
  readLoadOptions,
  readNumber,
  readSampling,
  refuseUnknownOptions,
  samplingOptions,
} from "./options.ts";

describe("options", () => {
  it("reads numbers and leaves out what was not given", () => {
    expect(readLoadOptions({ _: [], threads: "2", "max-num-tokens": "64" })).toEqual({ threads: 2, maxNumTokens: 64 });
    expect(readSampling({ _: [] })).toEqual({ temperature: 0.8, topP: 0.95 });
    expect(readSampling({ _: [], temperature: "0", "top-k": "5", seed: "7", stop: "\n" })).toEqual({
      temperature: 0,
      topP: 0.95,
      topK: 5,
      seed: 7,
      stop: "\n",
    });
  });

  it.each([
    ["threads", "0", '--threads must be a whole number of at least 1, got "0"'],
    ["threads", "two", '--threads must be a whole number of at least 1, got "two"'],
    ["top-p", "1.5", '--top-p must be a number of at least 0 and at most 1, got "1.5"'],
    ["temperature", "", '--temperature must be a number of at least 0, got ""'],
  ])("refuses --%s %s", (name, value, message) => {
    const rule =
      name === "threads" ? { least: 1, isInteger: true } : name === "top-p" ? { least: 0, most: 1 } : { least: 0 };
    expect(() => readNumber({ _: [], [name]: value }, name, rule)).toThrow(new UsageError(message));
  });

  it("names options it does not know and options without a value", () => {
    const known = { ...loadOptions, ...samplingOptions };
    expect(() =>
      refuseUnknownOptions({ _: [], "max-tokens": "3", maxTokens: "3", t: "1", temperature: "1" }, known),
    ).not.toThrow();
    expect(() => refuseUnknownOptions({ _: [], tempreature: "1" }, known)).toThrow("unknown option --tempreature");
    expect(() => refuseUnknownOptions({ _: [], q: true }, known)).toThrow("unknown option -q");
    expect(() => refuseUnknownOptions({ _: [], seed: "" }, known)).toThrow("--seed needs a value");
  });
});

describe("benchRows", () => {
  it("takes the median, least and most", () => {
    expect(spread([3, 1, 2])).toEqual({ median: 2, min: 1, max: 3 });
    expect(spread([4, 1, 2, 3])).toEqual({ median: 2.5, min: 1, max: 4 });
  });

  it("draws tokens in range, repeatably, without the excluded ones", () => {
    const tokens = randomTokens(500, 3, 10, [0, 4]);
    expect(tokens).toEqual(randomTokens(500, 3, 10, [0, 4]));
    expect(new Set(tokens)).toEqual(new Set([1, 2, 3, 5, 6, 7, 8, 9]));
    expect(tokens).not.toEqual(randomTokens(500, 4, 10, [0, 4]));
  });
});
