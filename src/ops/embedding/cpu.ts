/** The embedding kernel: expands the panel that holds a token's row, and takes the row's lane. */

import { defineKernel } from "../../kernels/index.ts";
import type { WeightType } from "../../tensor/index.ts";
import { expandPanel } from "../matmul/f32Kernels.ts";
import { panelStart } from "../matmul/panels.ts";
import type { Recorder } from "../recorder.ts";
import { checkEmbedding, type EmbeddingArgs } from "./contract.ts";

export interface EmbeddingSpec {
  readonly type: WeightType;
  readonly columns: number;
}

/** A task is a token. */
export const embeddingKernel = defineKernel({
  name: "embedding",
  params: { table: "pointer", tokenIds: "pointer", out: "pointer", scale: "f32" },
  scratchBytes: (spec: EmbeddingSpec, target) => spec.columns * target.lanes * 4,
  build(k, spec: EmbeddingSpec, p) {
    k.forTasks((token) => {
      const row = k.let(k.load("i32", p.tokenIds.add(token.mul(4))));
      const panel = k.let(row.divU(k.lanes));
      expandPanel(k, spec, panelStart(k, spec, p.table, panel), { pointer: k.scratch, stride: k.lanes * 4 });
      const lane = k.let(k.scratch.add(row.sub(panel.mul(k.lanes)).mul(4)));
      const out = k.let(p.out.add(token.mul(spec.columns * 4)));
      k.for(0, spec.columns, 1, (column) => {
        k.store("f32", out.add(column.mul(4)), k.load("f32", lane.add(column.mul(k.lanes * 4))).mul(p.scale));
      });
    });
  },
});

/** Records the embedding of tokens. Throws ArgumentError naming the argument that does not fit. */
export function recordEmbedding({ device, commands }: Recorder, args: EmbeddingArgs): void {
  checkEmbedding(args);
  const { table, tokenIds, out, numTokens, scale = 1 } = args;
  const kernel = device.compile(embeddingKernel, { type: table.type, columns: table.columns });
  commands.launch(kernel, { table: table.pointer, tokenIds, out, scale }, numTokens, { grain: 4 });
}
