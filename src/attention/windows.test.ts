import { describe, expect, it } from "vitest";
import { type NamedWindow, slidingWindowFrom } from "./windows.ts";

describe("slidingWindowFrom", () => {
  it.each<[NamedWindow, number | undefined]>([
    [{ windowLeft: 0 }, 1],
    [{ windowLeft: 127 }, 128],
    [{ windowLeft: -1 }, undefined],
    [{ maxAttendPast: 0 }, 1],
    [{ maxAttendPast: 64 }, 65],
    [{ maxAttendPast: undefined }, undefined],
    [{ slidingWindow: 128 }, 128],
    [{ slidingWindow: null }, undefined],
    [{ slidingWindow: undefined }, undefined],
  ])("counts the keys of %o", (window, expected) => {
    expect(slidingWindowFrom(window)).toBe(expected);
  });

  it("names a number that is no window", () => {
    expect(() => slidingWindowFrom({ windowLeft: -2 })).toThrow("windowLeft must be an integer of at least -1, got -2");
    expect(() => slidingWindowFrom({ maxAttendPast: -1 })).toThrow(
      "maxAttendPast must be an integer of at least 0, got -1",
    );
    expect(() => slidingWindowFrom({ slidingWindow: 0 })).toThrow(
      "slidingWindow must be an integer of at least 1, got 0",
    );
    const two = { windowLeft: 3, slidingWindow: 4 };
    expect(() => slidingWindowFrom(two)).toThrow(
      "must have one of windowLeft, maxAttendPast and slidingWindow, got windowLeft and slidingWindow",
    );
  });
});
