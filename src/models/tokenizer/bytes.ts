/** Byte values that several parts of the tokenizers know. */

/** U+0020 in UTF-8, and its UTF-16 code unit. */
export const SPACE = 0x20;

/** No text at all. */
export const NO_BYTES = new Uint8Array(0);
