/** The copy by its definition. */

/** Copies pages of `pageLength` elements in `pages` (changed in place); `copies` holds (from, to) in turn. */
export function copyPages(
  pages: Float32Array | Float64Array | Uint8Array,
  pageLength: number,
  copies: ArrayLike<number>,
): void {
  for (let i = 0; i < copies.length; i += 2) {
    const from = copies[i] * pageLength;
    pages.copyWithin(copies[i + 1] * pageLength, from, from + pageLength);
  }
}
