/**
 * The pages of one sequence, in order. Append-only, so that what a device was told of it stays true; the two exceptions have names.
 */

/** Page numbers in the order of the tokens. */
export class BlockTable {
  #pages = new Int32Array(8);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  at(index: number): number {
    return this.#pages[index];
  }

  append(page: number): void {
    if (this.#length === this.#pages.length) {
      const grown = new Int32Array(2 * this.#length);
      grown.set(this.#pages);
      this.#pages = grown;
    }
    this.#pages[this.#length++] = page;
  }

  /** Copy-on-write: the last page, which was shared, gives way to this sequence's own copy. */
  replaceLast(page: number): void {
    this.#pages[this.#length - 1] = page;
  }

  /** Rollback: takes the last page away and returns it. */
  pop(): number {
    return this.#pages[--this.#length];
  }

  /** Copies the table into a row of a batch. */
  copyTo(target: Int32Array, offset: number): void {
    const pages = this.#pages;
    for (let index = 0; index < this.#length; index++) target[offset + index] = pages[index];
  }

  toArray(): number[] {
    return Array.from(this.#pages.subarray(0, this.#length));
  }
}
