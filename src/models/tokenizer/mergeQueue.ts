/** The pending merges of one text, best first: a binary heap over typed arrays. What merging does to the text is not its matter. */

/** Merges ordered by score, highest first, and of equal ones the leftmost. Reused from text to text. */
export class MergeQueue {
  /** What `pop` took out: the symbol on the left, the one on the right, which merge it is, and the bytes both have together. */
  left = 0;
  right = 0;
  merge = 0;
  numBytes = 0;
  #heap = new Int32Array(0);
  #numHeaped = 0;
  #count = 0;
  #scores = new Float64Array(0);
  #lefts = new Int32Array(0);
  #rights = new Int32Array(0);
  #merges = new Int32Array(0);
  #numBytes = new Int32Array(0);

  /** Empties the queue for the merges of `numSymbols` symbols. */
  reset(numSymbols: number): void {
    if (3 * numSymbols > this.#heap.length) this.reserve(numSymbols);
    this.#numHeaped = 0;
    this.#count = 0;
  }

  /** Makes room for the merges of `numSymbols` symbols: one a pair at first, and two more a merge. */
  reserve(numSymbols: number): void {
    const capacity = 3 * numSymbols;
    this.#heap = new Int32Array(capacity);
    this.#scores = new Float64Array(capacity);
    this.#lefts = new Int32Array(capacity);
    this.#rights = new Int32Array(capacity);
    this.#merges = new Int32Array(capacity);
    this.#numBytes = new Int32Array(capacity);
  }

  push(score: number, left: number, right: number, merge: number, numBytes: number): void {
    const entry = this.#count++;
    this.#scores[entry] = score;
    this.#lefts[entry] = left;
    this.#rights[entry] = right;
    this.#merges[entry] = merge;
    this.#numBytes[entry] = numBytes;
    const heap = this.#heap;
    let at = this.#numHeaped++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!this.#isBefore(entry, heap[parent])) break;
      heap[at] = heap[parent];
      at = parent;
    }
    heap[at] = entry;
  }

  /** Takes out the best merge and shows it in `left`, `right`, `piece` and `numBytes`; false if there is none. */
  pop(): boolean {
    if (this.#numHeaped === 0) return false;
    const heap = this.#heap;
    const best = heap[0];
    this.left = this.#lefts[best];
    this.right = this.#rights[best];
    this.merge = this.#merges[best];
    this.numBytes = this.#numBytes[best];
    const last = heap[--this.#numHeaped];
    let at = 0;
    for (let child = 1; child < this.#numHeaped; child = 2 * at + 1) {
      if (child + 1 < this.#numHeaped && this.#isBefore(heap[child + 1], heap[child])) child++;
      if (!this.#isBefore(heap[child], last)) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = last;
    return true;
  }

  #isBefore(a: number, b: number): boolean {
    const difference = this.#scores[a] - this.#scores[b];
    return difference === 0 ? this.#lefts[a] < this.#lefts[b] : difference > 0;
  }
}
