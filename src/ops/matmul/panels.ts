/**
 * Where a packed matrix keeps its panels. A panel is `lanes` interleaved rows (packedBlock.ts says how); four panels lie together, block
 * column by block column, so that a kernel that takes them at once reads one run of memory from front to back.
 */

import type { KernelBuilder, Value } from "../../kernels/index.ts";
import { type WeightType, weightBlock } from "../../tensor/index.ts";

/** Panels that share a run of memory. Matrices are padded to whole groups; register tiles take 1, 2 or 4 panels of one group. */
export const panelsPerGroup = 4;

/** A weight matrix, as far as the place of its panels depends on it. */
export interface PanelShape {
  readonly type: WeightType;
  readonly columns: number;
}

/** Panels of a matrix, padding included. */
export const numPanels = (rows: number, lanes: number): number =>
  Math.ceil(rows / (lanes * panelsPerGroup)) * panelsPerGroup;

/** Bytes of a panel. */
export function panelBytes({ type, columns }: PanelShape, lanes: number): number {
  const { size, numBytes } = weightBlock(type);
  return Math.ceil(columns / size) * numBytes * lanes;
}

/** Bytes of one block of a panel; the next panel of the group begins so much further on. */
export const panelBlockBytes = (type: WeightType, lanes: number): number => weightBlock(type).numBytes * lanes;

/** Bytes from a block of a panel to the panel's next block. */
export const panelBlockStride = (type: WeightType, lanes: number): number =>
  panelBlockBytes(type, lanes) * panelsPerGroup;

/** Address of a panel's first block. */
export function panelStart(
  k: KernelBuilder,
  shape: PanelShape,
  weights: Value<"i32">,
  panel: Value<"i32">,
): Value<"i32"> {
  const groupBytes = panelBytes(shape, k.lanes) * panelsPerGroup;
  const inGroup = panel.and(panelsPerGroup - 1).mul(panelBlockBytes(shape.type, k.lanes));
  return k.let(weights.add(panel.divU(panelsPerGroup).mul(groupBytes)).add(inGroup));
}
