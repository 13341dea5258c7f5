/** The tokenizer files of llama2.c (tok512.bin, tokenizer.bin): longest piece, then score, length and bytes of each token. */

import { FormatError } from "../../tensor/errors.ts";
import { sentencePieceTokenizer, TokenType } from "./sentencePiece.ts";
import type { Tokenizer } from "./tokenizer.ts";

/**
 * Reads a llama2.c tokenizer: token 0 unknown, 1 begin, 2 end, 3 to 258 the bytes, then pieces with plain spaces.
 * Throws FormatError for a file that ends early, holds more than `vocabSize` tokens or fewer than 259.
 */
export function tokenizerFromLlama2c(file: Uint8Array, vocabSize: number): Tokenizer {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (vocabSize < 259) throw new FormatError(`vocabSize = ${vocabSize}: a llama2.c tokenizer has at least 259 tokens`);
  const pieces: Uint8Array[] = [];
  const scores = new Float32Array(vocabSize);
  const types = new Uint8Array(vocabSize).fill(TokenType.normal);
  types.set([TokenType.unknown, TokenType.control, TokenType.control]);
  types.fill(TokenType.byte, 3, 259);
  let at = 4;
  for (let id = 0; id < vocabSize; id++) {
    if (at + 8 > file.length) throw new FormatError(`The tokenizer file ends at token ${id} of ${vocabSize}`);
    scores[id] = view.getFloat32(at, true);
    const numBytes = view.getInt32(at + 4, true);
    at += 8;
    if (numBytes < 0 || at + numBytes > file.length) {
      throw new FormatError(`Token ${id} has ${numBytes} bytes, the tokenizer file only ${file.length - at} more`);
    }
    pieces.push(file.subarray(at, at + numBytes));
    at += numBytes;
  }
  if (at !== file.length) {
    throw new FormatError(`The tokenizer file has ${file.length - at} bytes more than its ${vocabSize} tokens take`);
  }
  const text = new TextDecoder("utf-8", { ignoreBOM: true });
  return sentencePieceTokenizer({
    tokens: { length: vocabSize, at: (id) => text.decode(pieces[id]), bytesAt: (id) => pieces[id] },
    scores,
    types,
    unknownId: 0,
    bosId: 1,
    eosIds: [2],
    addBos: true,
    addEos: false,
    addSpacePrefix: true,
    marksSpaces: false,
    chatTemplate: undefined,
  });
}
