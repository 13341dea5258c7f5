/** The page copy kernel and the function that records it. */
import { defineKernel } from "../../kernels/index.ts";
import { elementAddress, forLanes, forRowChunks, lanesScratchBytes } from "../elementwise/lanes.ts";
import type { Recorder } from "../recorder.ts";
import { type CopyPagesArgs, checkCopyPages } from "./contract.ts";

/** Words that one task copies. */
const CHUNK_WORDS = 4096;

/** One task is one chunk of one page. */
export const copyPagesKernel = defineKernel({
  name: "copyPages",
  params: { copies: "pointer", pages: "pointer", pageWords: "i32", numPages: "i32" },
  scratchBytes: (_spec, target) => lanesScratchBytes(target),
  build(k, _spec: Readonly<Record<string, never>>, p) {
    forRowChunks(k, p.pageWords, CHUNK_WORDS, (copy, first, count) => {
      const from = k.let(k.load("i32", p.copies.add(copy.shl(3))));
      const to = k.let(k.load("i32", p.copies.add(copy.shl(3)), 4));
      // The device list may differ from the one that was checked; it must not reach foreign memory.
      k.if(from.ltU(p.numPages).and(to.ltU(p.numPages)), () => {
        const source = elementAddress(k, p.pages, from, p.pageWords, first);
        const target = elementAddress(k, p.pages, to, p.pageWords, first);
        forLanes(k, count, 4, ({ load, store }) => store(target, load(source)));
      });
    });
  },
});

/** Records the copies in every buffer. Throws ShapeError or ArgumentError naming the argument or the copy that does not fit. */
export function recordCopyPages({ device, commands }: Recorder, args: CopyPagesArgs): void {
  checkCopyPages(args);
  if (args.numCopies === 0) return;
  const kernel = device.compile(copyPagesKernel, {});
  args.buffers.forEach(({ pointer, pageBytes, numPages }, index) => {
    const pageWords = pageBytes / 4;
    const numTasks = args.numCopies * Math.ceil(pageWords / CHUNK_WORDS);
    // Buffers do not depend on each other; whatever comes after the last one waits for all.
    const overlap = index + 1 < args.buffers.length;
    commands.launch(kernel, { copies: args.copies.pointer, pages: pointer, pageWords, numPages }, numTasks, {
      overlap,
    });
  });
}
