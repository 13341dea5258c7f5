import { describe, expect, it } from "vitest";
import { replaceSection } from "./report.ts";

describe("replaceSection", () => {
  const page = "# Benchmarks\n\nWords.\n\n## Matmul\n\nold\n\n### Table\n\n## Handoff\n\nlast\n";

  it("replaces a section up to the next", () => {
    expect(replaceSection(page, "matmul", "## Matmul\n\nnew")).toBe(
      "# Benchmarks\n\nWords.\n\n## Matmul\n\nnew\n\n## Handoff\n\nlast\n",
    );
  });

  it("replaces the last section", () => {
    expect(replaceSection(page, "handoff", "## Handoff\n\nnew")).toBe(page.replace("last", "new"));
  });

  it("refuses a section that is not there", () => {
    expect(() => replaceSection(page, "mat", "## Mat")).toThrow('no section "## Mat"');
  });
});
