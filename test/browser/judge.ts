/** What must hold of a page's report. */

import { blockedMs, type PageReport } from "./pageReport.ts";
import type { Setting } from "./settings.ts";
import type { Trial } from "./trial.ts";

/** A task of the page's thread may take so long; the browser itself calls 50 ms long. A gap between frames may be the machine's. */
const LONGEST_TASK_MS = 100;
/** A page at rest draws 60; other work on a small machine delays some. */
const LEAST_FRAMES_PER_SECOND = 20;
/** Closing frees the workers at once. Where it has to end them by force, it has waited for 500 ms (devices) or 5 s (engine). */
const LONGEST_CLOSE_SECONDS = 0.4;

/** What is wrong, as sentences. `expected` is what Node made of the same prompts. */
export function judge(setting: Setting, report: PageReport, expected: readonly Trial[]): string[] {
  const problems: string[] = [];
  const require = (isRight: boolean, problem: string) => {
    if (!isRight) problems.push(`${setting.name}: ${problem}`);
  };
  require(report.isIsolated === setting.isIsolated, `crossOriginIsolated is ${report.isIsolated}`);
  const { longestGapMs = 0, longestTaskMs: seenMs = 0 } = report.blocked ?? {};
  require(Math.min(longestGapMs, seenMs) >=
    blockedMs, `a block of ${blockedMs} ms on purpose was seen as ${seenMs} ms`);
  if (setting.error !== undefined) {
    require(setting.error.test(report.error ?? ""), `the error is ${report.error}, not ${setting.error}`);
    return problems;
  }
  require(report.error === undefined, `the page failed: ${report.error}`);
  require(report.trials.length === expected.length, `${report.trials.length} of ${expected.length} trials ran`);
  for (const [i, trial] of report.trials.entries()) {
    const tokens = JSON.stringify(trial.tokenIds);
    const tokensInNode = JSON.stringify(expected[i].tokenIds);
    const about = trial.activations;
    require(tokens === tokensInNode, `${about}: tokens are ${tokens}, in Node ${tokensInNode}`);
    require(trial.threads === 1 || setting.isIsolated, `${about}: ${trial.threads} threads without isolation`);
    require(trial.threads > 1 || !setting.isIsolated || expected[i].threads === 1, `${about}: only one thread`);
    require(trial.closeSeconds < LONGEST_CLOSE_SECONDS, `${about}: close took ${trial.closeSeconds} s`);
    require(/the engine was closed/.test(trial.refusal), `${about}: after close, a request gave ${trial.refusal}`);
    if (!setting.inWorker) continue;
    const { frames, seconds, longestTaskMs } = trial;
    require(frames >= LEAST_FRAMES_PER_SECOND * seconds, `${about}: ${frames} frames in ${seconds} s`);
    require(longestTaskMs <= LONGEST_TASK_MS, `${about}: the page's thread was blocked for ${longestTaskMs} ms`);
  }
  return problems;
}
