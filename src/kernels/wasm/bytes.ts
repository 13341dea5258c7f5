/** A growing byte buffer with WebAssembly's integer encodings. */

export class ByteWriter {
  private buffer = new Uint8Array(1024);
  private view = new DataView(this.buffer.buffer);
  private used = 0;

  get length(): number {
    return this.used;
  }

  byte(value: number): this {
    this.reserve(1);
    this.buffer[this.used++] = value;
    return this;
  }
  bytes(values: ArrayLike<number>): this {
    this.reserve(values.length);
    this.buffer.set(values, this.used);
    this.used += values.length;
    return this;
  }
  /** Unsigned LEB128 of a u32. */
  unsigned(value: number): this {
    let rest = value >>> 0;
    while (rest >= 0x80) {
      this.byte((rest & 0x7f) | 0x80);
      rest >>>= 7;
    }
    return this.byte(rest);
  }
  /** Signed LEB128 of an i32. */
  signed(value: number): this {
    let rest = value | 0;
    for (;;) {
      const low = rest & 0x7f;
      rest >>= 7;
      const signBit = (low & 0x40) !== 0;
      if ((rest === 0 && !signBit) || (rest === -1 && signBit)) return this.byte(low);
      this.byte(low | 0x80);
    }
  }
  float32(value: number): this {
    this.reserve(4);
    this.view.setFloat32(this.used, value, true);
    this.used += 4;
    return this;
  }
  name(text: string): this {
    const encoded = new TextEncoder().encode(text);
    return this.unsigned(encoded.length).bytes(encoded);
  }
  /** A section or function body: its length, then its bytes. */
  sized(content: ByteWriter): this {
    return this.unsigned(content.used).bytes(content.finish());
  }
  finish(): Uint8Array<ArrayBuffer> {
    return this.buffer.slice(0, this.used);
  }

  private reserve(more: number): void {
    if (this.used + more <= this.buffer.length) return;
    const larger = new Uint8Array(Math.max(this.buffer.length * 2, this.used + more));
    larger.set(this.buffer);
    this.buffer = larger;
    this.view = new DataView(larger.buffer);
  }
}
