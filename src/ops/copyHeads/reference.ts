/** out[t, h, :] = factor * x[t, h, :], x and out contiguous; `broadcast`: x is [tokens, channels] and every head gets it. */
export function copyHeads(
  x: ArrayLike<number>,
  channels: number,
  numHeads: number,
  { factor = 1, broadcast = false }: { readonly factor?: number; readonly broadcast?: boolean } = {},
): Float64Array {
  const copies = broadcast ? numHeads : 1;
  return Float64Array.from({ length: x.length * copies }, (_, at) => {
    const vector = Math.floor(at / channels);
    return factor * x[Math.floor(vector / copies) * channels + (at % channels)];
  });
}
