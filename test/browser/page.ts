/**
 * Runs in the page: the trials with the bundled model as a File, while watching whether the page's own thread keeps turning. Reports to
 * the server that served it. The query says where the engine runs: ?worker=false takes the page's thread.
 */

import { Engine } from "../../src/index.ts";
import { blockedMs, type Liveliness, type PageReport } from "./pageReport.ts";
import { activationChoices, runTrial, type Trial } from "./trial.ts";

let blocked: Liveliness | undefined;
const trials: (Trial & Liveliness)[] = [];

async function report(error?: unknown): Promise<void> {
  const text = error instanceof Error ? `${error.message}\n${error.stack}` : String(error);
  const body: PageReport = {
    userAgent: navigator.userAgent,
    isIsolated: crossOriginIsolated,
    blocked,
    trials,
    ...(error === undefined ? {} : { error: text }),
  };
  await fetch("/report", { method: "POST", body: JSON.stringify(body) });
}

/** Counts frames until the returned function is called. */
function watchThread(): () => Liveliness {
  const startedAt = performance.now();
  let last = startedAt;
  let frames = 0;
  let longestGapMs = 0;
  let longestTaskMs = 0;
  let isOver = false;
  const tick = () => {
    const now = performance.now();
    longestGapMs = Math.max(longestGapMs, now - last);
    last = now;
    frames++;
    if (!isOver) requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
  const observer = new PerformanceObserver((list) => {
    for (const { duration } of list.getEntries()) longestTaskMs = Math.max(longestTaskMs, duration);
  });
  observer.observe({ type: "longtask" });
  return () => {
    isOver = true;
    for (const { duration } of observer.takeRecords()) longestTaskMs = Math.max(longestTaskMs, duration);
    observer.disconnect();
    longestGapMs = Math.max(longestGapMs, performance.now() - last);
    return { frames, seconds: (performance.now() - startedAt) / 1000, longestGapMs, longestTaskMs };
  };
}

/** Resolves in the next frame but one: what was counted is counted by then. */
async function frames(): Promise<void> {
  for (let i = 0; i < 2; i++) await new Promise((resolve) => requestAnimationFrame(resolve));
}

async function blockOnPurpose(): Promise<Liveliness> {
  const stop = watchThread();
  await frames();
  const end = performance.now() + blockedMs;
  while (performance.now() < end);
  await frames();
  return stop();
}

async function main(): Promise<void> {
  const worker = new URLSearchParams(location.search).get("worker") !== "false";
  blocked = await blockOnPurpose();
  const name = "tales-5m-q8_0.gguf";
  const model = new File([await (await fetch(`/assets/${name}`)).blob()], name);
  for (const activations of activationChoices) {
    const stop = watchThread();
    const trial = await runTrial((options) => Engine.load([model], { ...options, worker }), activations);
    await frames();
    trials.push({ ...trial, ...stop() });
  }
}

main().then(() => report(), report);
