/**
 * How prefill with rebuilt keys and values is cut into parts that fit a bounded workspace: the new tokens of a few sequences at a time,
 * causal, and the tokens before them in chunks that every query sees as a whole. Only lengths; tensors are rebuilt.ts's business.
 */
import { type AttentionBatch, tableOffset } from "../../ops/attention/index.ts";

/** Tokens whose keys and values are rebuilt together, and the queries that attend them. */
export interface RebuiltPart {
  /** Rows of the batch that this part's batch begins at. */
  readonly firstRow: number;
  /** Place of the part's first token in `slots`, and how many it has. */
  readonly firstToken: number;
  readonly numTokens: number;
  /** The attention: keys of each sequence are neighbouring rows of the workspace. */
  readonly batch: AttentionBatch;
}

/** The parts of a step, and where their tokens are cached. */
export interface RebuiltParts {
  /** The new tokens: every row of the batch is in exactly one of them. */
  readonly own: readonly RebuiltPart[];
  /** The tokens before them. A long sequence may be in many, or alone in none. */
  readonly context: readonly RebuiltPart[];
  /** Slot (page * pageSize + offset) and absolute position of each token, part by part. */
  readonly slots: Int32Array;
  readonly positions: Int32Array;
  /** The most tokens of a part, and the most rows of a context part. */
  readonly maxTokens: number;
  readonly maxContextRows: number;
}

/** Tokens `begin` up to `end` of a sequence. */
interface Range {
  readonly sequence: number;
  readonly begin: number;
  readonly end: number;
}

/**
 * Cuts a batch. `workspaceTokens` is kept but by a sequence with more new tokens than that: those stay together, because causal attention
 * needs them in one piece.
 */
export function cutIntoParts(batch: AttentionBatch, pageSize: number, workspaceTokens: number): RebuiltParts {
  const { numSeqs, queryIndptr, kvLens } = batch;
  const ownLens = Int32Array.from({ length: numSeqs }, (_, s) =>
    Math.min(kvLens[s], queryIndptr[s + 1] - queryIndptr[s]),
  );
  const tokens = new TokenList(batch, pageSize);
  const own = ownRanges(ownLens, kvLens, workspaceTokens).map((ranges, index, all) =>
    tokens.addPart(ranges, index === all.length - 1 ? batch.numRows : undefined),
  );
  const context = contextRanges(ownLens, batch, workspaceTokens).map((ranges) => tokens.addPart(ranges));
  return {
    own,
    context,
    slots: Int32Array.from(tokens.slots),
    positions: Int32Array.from(tokens.positions),
    maxTokens: Math.max(0, ...[...own, ...context].map(({ numTokens }) => numTokens)),
    maxContextRows: Math.max(0, ...context.map((part) => part.batch.numRows)),
  };
}

/** Neighbouring sequences whose new tokens fit together; at least one list, for the rows of a batch without sequences. */
function ownRanges(ownLens: Int32Array, kvLens: Int32Array, workspaceTokens: number): Range[][] {
  const parts: Range[][] = [[]];
  let used = 0;
  for (const [sequence, length] of ownLens.entries()) {
    if (used > 0 && used + length > workspaceTokens) {
      parts.push([]);
      used = 0;
    }
    parts[parts.length - 1].push({ sequence, begin: kvLens[sequence] - length, end: kvLens[sequence] });
    used += length;
  }
  return parts;
}

/**
 * The tokens before the new ones, in order, cut at multiples of the workspace from each sequence's beginning: where a sequence is cut decides
 * about the order of its sums, and so must not depend on what else is in the batch. Sequences without queries need none.
 */
function contextRanges(
  ownLens: Int32Array,
  { queryIndptr, kvLens }: AttentionBatch,
  workspaceTokens: number,
): Range[][] {
  const parts: Range[][] = [];
  let left = 0;
  for (const [sequence, ownLen] of ownLens.entries()) {
    if (queryIndptr[sequence + 1] === queryIndptr[sequence]) continue;
    const contextLen = kvLens[sequence] - ownLen;
    for (let begin = 0; begin < contextLen; begin += workspaceTokens) {
      const end = Math.min(contextLen, begin + workspaceTokens);
      if (end - begin > left) {
        parts.push([]);
        left = workspaceTokens;
      }
      parts[parts.length - 1].push({ sequence, begin, end });
      left -= end - begin;
    }
  }
  return parts;
}

/** Collects the tokens of the parts. */
class TokenList {
  readonly slots: number[] = [];
  readonly positions: number[] = [];
  readonly #batch: AttentionBatch;
  readonly #pageSize: number;

  constructor(batch: AttentionBatch, pageSize: number) {
    this.#batch = batch;
    this.#pageSize = pageSize;
  }

  /** @param endRow Row that the part's batch ends at; the end of its last sequence by default. */
  addPart(ranges: readonly Range[], endRow?: number): RebuiltPart {
    const { queryIndptr, blockTables, positionOffsets } = this.#batch;
    const firstToken = this.slots.length;
    const first = ranges[0]?.sequence ?? 0;
    const numSeqs = ranges.length === 0 ? 0 : ranges[ranges.length - 1].sequence - first + 1;
    const firstRow = queryIndptr[first];
    const kvLens = new Int32Array(numSeqs);
    const firstRows = new Int32Array(numSeqs);
    for (const { sequence, begin, end } of ranges) {
      kvLens[sequence - first] = end - begin;
      firstRows[sequence - first] = this.slots.length - firstToken;
      for (let t = begin; t < end; t++) {
        const page = blockTables[tableOffset(this.#batch, sequence) + Math.floor(t / this.#pageSize)];
        this.slots.push(page * this.#pageSize + (t % this.#pageSize));
        this.positions.push((positionOffsets?.[sequence] ?? 0) + t);
      }
    }
    const numTokens = this.slots.length - firstToken;
    const indptr = queryIndptr.slice(first, first + numSeqs + 1).map((row) => row - firstRow);
    return {
      firstRow,
      firstToken,
      numTokens,
      batch: {
        numRows: (endRow ?? queryIndptr[first + numSeqs]) - firstRow,
        numSeqs,
        queryIndptr: indptr,
        kvLens,
        blockTables: firstRows,
        maxPages: 1,
        numPages: numTokens,
        // A sequence whose context lies in other parts sees nothing in this one.
        allowUnseeing: true,
      },
    };
  }
}
