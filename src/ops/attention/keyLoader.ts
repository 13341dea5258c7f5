/**
 * Kernel part: brings the keys and values of one block out of their pages as f32 rows. Few query rows read f32 pages in place, through
 * a table of row addresses; otherwise the rows are copied or converted to scratch memory, where register tiles step through them with
 * constant offsets. A new storage type is a new entry of `decoders`. What is computed with the rows is in registerTiles.ts.
 */
import { bf16ToF32, f16ToF32, type KernelBuilder, type Value } from "../../kernels/index.ts";
import type { AttentionSpec, PageStorage } from "./contract.ts";
import { keyBlock } from "./plan.ts";
import { packedRows, type RowSource, tableRows } from "./registerTiles.ts";

type Address = Value<"i32">;

/** Page addressing parameters of the kernel, in bytes. */
export interface PageParams {
  readonly kPages: Address;
  readonly vPages: Address;
  readonly kPageBytes: Address;
  readonly kSlotBytes: Address;
  readonly vPageBytes: Address;
  readonly vSlotBytes: Address;
}

interface Decoder {
  readonly elementBytes: number;
  /** Writes one row of `count` elements as f32. */
  decodeRow(k: KernelBuilder, from: Address, to: Address, count: number): void;
}

const decoders: Readonly<Record<PageStorage, Decoder>> = {
  f32: {
    elementBytes: 4,
    decodeRow: (k, from, to, count) =>
      k.for(0, count * 4, k.lanes * 4, (at) => k.store("f32v", to.add(at), k.load("f32v", from.add(at)))),
  },
  f16: { elementBytes: 2, decodeRow: decodeF16Row },
  bf16: {
    elementBytes: 2,
    decodeRow: (k, from, to, count) =>
      k.for(0, count, k.lanes, (d) =>
        k.store("f32v", to.add(d.shl(2)), bf16ToF32(k.load("u16 to i32v", from.add(d.shl(1))))),
      ),
  },
};

/**
 * Moved to the place of an f32's, the bits of a half are its value times 2^-112, subnormals included. Only infinities and NaN come out
 * wrong: a row that holds one is done again the long way.
 */
function decodeF16Row(k: KernelBuilder, from: Address, to: Address, count: number): void {
  const exponents = k.var("i32v", 0);
  k.for(0, count, 2 * k.lanes, (d) => {
    const halves = k.let(k.load("i16v", k.let(from.add(d.shl(1)))));
    const out = k.let(to.add(d.shl(2)));
    for (const [i, wide] of [halves.widenLow(), halves.widenHigh()].entries()) {
      // Widening repeats the sign; all but its last copy and the moved bits are cleared.
      const moved = wide.shl(13).and(0x8fffe000 | 0);
      k.store("f32v", out, moved.as("f32v").mul(2 ** 112), i * k.lanes * 4);
    }
    // The sum carries into the sign of exactly those halves whose exponent is all ones.
    exponents.set(exponents.value.or(halves.as("i32v").and(0x7c007c00).add(0x04000400)));
  });
  k.if(exponents.value.and(0x80008000 | 0).anyTrue(), () => {
    k.for(0, count, k.lanes, (d) => {
      k.store("f32v", to.add(d.shl(2)), f16ToF32(k, k.load("u16 to i32v", from.add(d.shl(1)))));
    });
  });
}

export function storageBytes(storage: PageStorage): number {
  return decoders[storage].elementBytes;
}

/** Query rows from which on f32 rows are worth copying. */
const copiedFromRows = 8;

/** Scratch that the loader needs: a table of addresses and a block of rows, for the keys and for the values. */
export function loaderBytes({ headDim }: AttentionSpec): number {
  return 2 * keyBlock * (4 + headDim * 4);
}

/** The keys and the values of one block, wherever they lie; `load` fills them, then one of `withKeys` and `withValues` is used after the other. */
export class BlockLoader {
  readonly #k: KernelBuilder;
  readonly #spec: AttentionSpec;
  readonly #inPlace: Value<"i32"> | undefined;
  readonly #tables: { readonly keys: Address; readonly values: Address };
  readonly #packed: { readonly keys: Address; readonly values: Address };

  /** @param scratch loaderBytes of memory, 16-byte aligned; `rows` is the number of query rows. */
  constructor(k: KernelBuilder, spec: AttentionSpec, scratch: Address, rows: Value<"i32">) {
    this.#k = k;
    this.#spec = spec;
    this.#inPlace = spec.storage === "f32" ? k.let(rows.lt(copiedFromRows)) : undefined;
    const blockBytes = keyBlock * spec.headDim * 4;
    const packed = { keys: scratch, values: k.let(scratch.add(blockBytes)) };
    const tables = k.let(scratch.add(2 * blockBytes));
    this.#packed = packed;
    this.#tables = { keys: tables, values: k.let(tables.add(keyBlock * 4)) };
  }

  /**
   * Loads keys and values `begin` up to `end` of a block (0 <= begin < end <= keyBlock, counted from the block's first position
   * `blockStart`). Nothing outside of them is read from the pages. Up to the surrounding multiples of 4 the rows
   * hold finite values, so that register tiles need no remainder.
   */
  load(pages: PageParams, blockTable: Address, blockStart: Value<"i32">, begin: Value<"i32">, end: Value<"i32">): void {
    const inPlace = () =>
      this.#walk(pages, blockTable, blockStart, begin, end, (table, _, j, address) => {
        this.#k.store("i32", table.add(j.shl(2)), address);
      });
    const packed = () =>
      this.#walk(pages, blockTable, blockStart, begin, end, (_, rows, j, address) => {
        const { headDim, storage } = this.#spec;
        decoders[storage].decodeRow(this.#k, this.#k.let(address), this.#k.let(rows.add(j.mul(headDim * 4))), headDim);
      });
    this.#choose(
      () => {
        inPlace();
        this.#padTables(begin, end);
      },
      () => {
        packed();
        this.#padValues(begin, end);
      },
    );
  }

  withKeys(use: (rows: RowSource) => void): void {
    this.#use("keys", use);
  }

  withValues(use: (rows: RowSource) => void): void {
    this.#use("values", use);
  }

  #use(which: "keys" | "values", use: (rows: RowSource) => void): void {
    this.#choose(
      () => use(tableRows(this.#k, this.#tables[which])),
      () => use(packedRows(this.#k, this.#packed[which], this.#spec.headDim * 4)),
    );
  }

  #choose(inPlace: () => void, packed: () => void): void {
    if (this.#inPlace) this.#k.if(this.#inPlace, inPlace, packed);
    else packed();
  }

  /** Calls `place` for each key and each value with its number in the block and its address: runs of slots within pages. */
  #walk(
    pages: PageParams,
    blockTable: Address,
    blockStart: Value<"i32">,
    begin: Value<"i32">,
    end: Value<"i32">,
    place: (table: Address, rows: Address, j: Value<"i32">, address: Address) => void,
  ): void {
    const k = this.#k;
    const { pageSize } = this.#spec;
    const at = k.var("i32", begin);
    k.while(at.value.lt(end), () => {
      const position = k.let(blockStart.add(at.value));
      const pageIndex = k.let(position.divU(pageSize));
      const slot = k.let(position.sub(pageIndex.mul(pageSize)));
      const page = k.let(k.load("i32", blockTable.add(pageIndex.shl(2))));
      const left = k.let(end.sub(at.value));
      const inPage = k.let(k.i32(pageSize).sub(slot));
      const run = k.let(k.select(inPage.lt(left), inPage, left));
      const key = k.let(pages.kPages.add(page.mul(pages.kPageBytes)).add(slot.mul(pages.kSlotBytes)));
      const value = k.let(pages.vPages.add(page.mul(pages.vPageBytes)).add(slot.mul(pages.vSlotBytes)));
      k.for(0, run, 1, (i) => {
        const j = k.let(at.value.add(i));
        place(this.#tables.keys, this.#packed.keys, j, key.add(i.mul(pages.kSlotBytes)));
        place(this.#tables.values, this.#packed.values, j, value.add(i.mul(pages.vSlotBytes)));
      });
      at.set(at.value.add(run));
    });
  }

  /** Entries around [begin, end) repeat a row within. */
  #padTables(begin: Value<"i32">, end: Value<"i32">): void {
    for (const table of [this.#tables.keys, this.#tables.values]) {
      const first = this.#k.let(this.#k.load("i32", table.add(begin.shl(2))));
      this.#forPadding(begin, end, (j) => this.#k.store("i32", table.add(j.shl(2)), first));
    }
  }

  /** Values around [begin, end) are zeros: what is left there could be a NaN, which a weight of 0 does not hide. */
  #padValues(begin: Value<"i32">, end: Value<"i32">): void {
    const k = this.#k;
    const rowBytes = this.#spec.headDim * 4;
    this.#forPadding(begin, end, (j) => {
      const row = k.let(this.#packed.values.add(j.mul(rowBytes)));
      k.for(0, rowBytes, k.lanes * 4, (at) => k.store("f32v", row.add(at), 0));
    });
  }

  #forPadding(begin: Value<"i32">, end: Value<"i32">, body: (j: Value<"i32">) => void): void {
    this.#k.for(begin.and(-4), begin, 1, body);
    this.#k.for(end, end.add(3).and(-4), 1, body);
  }
}
