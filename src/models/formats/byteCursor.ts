/** Reads a byte source front to back through one buffer, for headers whose length is known only once they are read. */

import { FormatError } from "../../tensor/index.ts";
import { type ByteSource, requireRange } from "./byteSource.ts";

const CHUNK_BYTES = 2 ** 20;

/**
 * A position in a byte source with the bytes that follow it buffered. `need(n)` comes before the synchronous getters, which trust it:
 * so a loop over many short values awaits once a chunk, not once a value.
 */
export class ByteCursor {
  readonly source: ByteSource;
  #buffer: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  #view = new DataView(this.#buffer.buffer);
  #bufferOffset = 0;
  #at = 0;

  constructor(source: ByteSource) {
    this.source = source;
  }

  /** Offset of the next byte in the source. */
  get position(): number {
    return this.#bufferOffset + this.#at;
  }

  /** Bytes after the position in the source. */
  get numLeft(): number {
    return this.source.size - this.position;
  }

  /** Bytes that can be taken without another `need`. */
  get numBuffered(): number {
    return this.#buffer.length - this.#at;
  }

  /** Makes at least `numBytes` available. Throws FormatError if the source ends before. */
  async need(numBytes: number): Promise<void> {
    if (this.numBuffered >= numBytes) return;
    const offset = this.position;
    requireRange(this.source, offset, numBytes);
    const length = Math.min(Math.max(numBytes, CHUNK_BYTES), this.source.size - offset);
    this.#buffer = await this.source.read(offset, length);
    this.#view = new DataView(this.#buffer.buffer, this.#buffer.byteOffset, this.#buffer.length);
    this.#bufferOffset = offset;
    this.#at = 0;
  }

  u8(): number {
    return this.#view.getUint8(this.#advance(1));
  }

  u16(): number {
    return this.#view.getUint16(this.#advance(2), true);
  }

  i16(): number {
    return this.#view.getInt16(this.#advance(2), true);
  }

  u32(): number {
    return this.#view.getUint32(this.#advance(4), true);
  }

  i32(): number {
    return this.#view.getInt32(this.#advance(4), true);
  }

  f32(): number {
    return this.#view.getFloat32(this.#advance(4), true);
  }

  f64(): number {
    return this.#view.getFloat64(this.#advance(8), true);
  }

  /** Unsigned 64 bits as a number; above 2^53 it is rounded, which no valid count, length or offset reaches. */
  u64(): number {
    const low = this.u32();
    return this.u32() * 2 ** 32 + low;
  }

  /** Signed 64 bits as a number, rounded beyond 2^53. */
  i64(): number {
    const low = this.u32();
    return this.i32() * 2 ** 32 + low;
  }

  /** The unsigned 64 bits that lie `offset` bytes ahead; the position stays. */
  peekU64(offset: number): number {
    const at = this.#at + offset;
    return this.#view.getUint32(at, true) + this.#view.getUint32(at + 4, true) * 2 ** 32;
  }

  /** A view of all that is buffered, good until the next `need`. The position stays. */
  buffered(): Uint8Array<ArrayBuffer> {
    return this.#buffer.subarray(this.#at);
  }

  /** Moves the position over buffered bytes. */
  skip(numBytes: number): void {
    this.#advance(numBytes);
  }

  /** A view of the next bytes, good until the next `need`. */
  bytes(numBytes: number): Uint8Array<ArrayBuffer> {
    const at = this.#advance(numBytes);
    return this.#buffer.subarray(at, at + numBytes);
  }

  /** The next bytes as a copy of their own. Throws FormatError if the source ends before. */
  async copy(numBytes: number): Promise<Uint8Array<ArrayBuffer>> {
    if (this.numBuffered >= numBytes) return this.bytes(numBytes).slice();
    const offset = this.position;
    const bytes = await this.source.read(offset, numBytes);
    this.#buffer = new Uint8Array(0);
    this.#bufferOffset = offset + numBytes;
    this.#at = 0;
    return bytes;
  }

  #advance(numBytes: number): number {
    const at = this.#at;
    if (at + numBytes > this.#buffer.length) {
      throw new FormatError(`${this.source.label}: byte ${this.position + numBytes} was read before it was asked for`);
    }
    this.#at = at + numBytes;
    return at;
  }
}
