/** The buffers that a copy of pages has to copy: those of codes and those of scales, each piece of memory once. */
import { ArgumentError } from "../../tensor/index.ts";
import { checkPages, type KvPages, type SlotRows } from "../appendKv/pages.ts";
import type { PageBuffer } from "./contract.ts";

/** Pages as an append is given them, and what each of their slots holds (`headRows`). */
export interface StoredPages {
  readonly rows: SlotRows;
  readonly pages: KvPages;
}

/**
 * The buffers of pages that belong together, such as a layer's keys and values: also of their scales, without which codes mean nothing. Pages
 * that lie inside of each other (keys and values in turn, scales behind their row) are one buffer. Throws ArgumentError for pages without a
 * page size.
 */
export function pageBuffers(parts: readonly StoredPages[]): PageBuffer[] {
  const regions = parts.flatMap(({ rows, pages }, i) => {
    if (pages.pageSize === undefined) throw new ArgumentError(`parts[${i}].pages.pageSize must be given to copy pages`);
    const { scales, numSlots, pageSize, pointer, pageBytes } = checkPages(`parts[${i}].pages`, rows, pages);
    const numPages = numSlots / pageSize;
    const region = { pointer, pageBytes, numPages };
    return rows.scales === 0 ? [region] : [region, { pointer: scales.pointer, pageBytes: scales.pageBytes, numPages }];
  });
  const buffers: PageBuffer[] = [];
  for (const region of regions.sort((a, b) => a.pointer - b.pointer)) {
    const isInside = buffers.some(
      ({ pointer, pageBytes }) => region.pointer < pointer + pageBytes && region.pageBytes === pageBytes,
    );
    if (!isInside) buffers.push(region);
  }
  return buffers;
}
