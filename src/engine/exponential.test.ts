import { expect, it } from "vitest";
import { LOWEST_EXPONENT, negativeExp } from "./exponential.ts";

it("negativeExp equals Math.exp to a relative 1e-14, and is 1 at 0", () => {
  let worst = 0;
  for (let i = 0; i <= 100_000; i++) {
    const x = (LOWEST_EXPONENT * i) / 100_000;
    worst = Math.max(worst, Math.abs(negativeExp(x) / Math.exp(x) - 1));
  }
  expect(worst).toBeLessThan(1e-14);
  expect(negativeExp(0)).toBe(1);
});
