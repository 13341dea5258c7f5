import { describe, expect, it } from "vitest";
import { alibiSlopes } from "./alibiSlopes.ts";

describe("alibiSlopes", () => {
  it("are powers of 2^(-8/n), with every other one of twice as many for the rest", () => {
    expect([...alibiSlopes(8)]).toEqual([1, 2, 3, 4, 5, 6, 7, 8].map((i) => 2 ** -i));
    expect([...alibiSlopes(6)]).toEqual([2 ** -2, 2 ** -4, 2 ** -6, 2 ** -8, 2 ** -1, 2 ** -3]);
    expect([...alibiSlopes(1)]).toEqual([2 ** -8]);
  });
});
