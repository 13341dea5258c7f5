/**
 * The alphabet of byte-level BPE (Radford et al. 2019, GPT-2): each byte has a printable character that stands for it in the vocabulary.
 */

/** byteLevelAlphabet[b] stands for byte b: the printable Latin-1 characters for themselves, the other bytes from U+0100 on. */
export const byteLevelAlphabet: readonly string[] = (() => {
  const isPrintable = (byte: number) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  let numOthers = 0;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPrintable(byte) ? byte : 0x100 + numOthers++));
})();

const bytesOfCharacters = new Map(byteLevelAlphabet.map((character, byte) => [character, byte]));

/** The bytes that a byte-level piece stands for, or undefined if one of its characters stands for no byte. */
export function byteLevelBytes(piece: string): Uint8Array | undefined {
  const bytes = new Uint8Array(piece.length);
  for (let i = 0; i < piece.length; i++) {
    const byte = bytesOfCharacters.get(piece[i]);
    if (byte === undefined) return undefined;
    bytes[i] = byte;
  }
  return bytes;
}

/** The byte-level spelling of a text. */
export function byteLevelText(text: string): string {
  return Array.from(new TextEncoder().encode(text), (byte) => byteLevelAlphabet[byte]).join("");
}
