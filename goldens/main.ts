/**
 * npm run goldens -- PATH... [--device reference|cpu] [--json]
 *
 * Runs every golden case under the given folders (or the given case files) and ends with `N passed, N failed`. Without --device each
 * case runs on the reference and on the CPU device, and counts twice. An unknown op or a missing file is a failure. Exit code 1 on any.
 * Whole models that wait for a later part of the project (waiting.ts) are passed over with their reasons, unless they are named.
 */
import { existsSync } from "node:fs";
import { parseArgs } from "node:util";
import type { GoldenFamily, GoldenOutcome, GoldenTarget } from "./case.ts";
import { discover, type FoundCase } from "./discover.ts";
import { opGoldens } from "./ops.ts";
import { waitingReason } from "./waiting.ts";

interface Result extends GoldenOutcome {
  readonly path: string;
  readonly device: string;
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { device: { type: "string" }, json: { type: "boolean", default: false } },
  });
  if (positionals.length === 0) {
    console.error("usage: npm run goldens -- PATH... [--device reference|cpu] [--json]");
    return 1;
  }
  const { targets, close } = await openTargets(values.device);
  try {
    const families = await loadFamilies();
    const results: Result[] = [];
    for (const [group, found] of Map.groupBy(discover(positionals), ({ group }) => group)) {
      const cases = found.filter(({ path, isNamed }) => isNamed || waitingReason(path) === undefined);
      if (!values.json && cases.length < found.length) {
        console.log(`${group}: ${found.length - cases.length} waiting for ${waitingReason(found[0].path)}`);
      }
      if (cases.length > 0) results.push(...(await runGroup(group, cases, families, targets, values.json)));
    }
    const failed = results.filter((result) => result.failures.length > 0);
    if (values.json) console.log(JSON.stringify(results, null, 2));
    console.log(`${results.length - failed.length} passed, ${failed.length} failed`);
    return failed.length > 0 || results.length === 0 ? 1 : 0;
  } finally {
    await close();
  }
}

async function openTargets(
  device: string | undefined,
): Promise<{ targets: GoldenTarget[]; close: () => Promise<void> }> {
  if (device !== undefined && device !== "reference" && device !== "cpu") {
    throw new Error(`--device must be reference or cpu, got ${device}`);
  }
  const targets: GoldenTarget[] = device === "cpu" ? [] : [{ name: "reference" }];
  if (device === "reference") return { targets, close: async () => {} };
  const { CpuDevice } = await import("../src/devices/index.ts");
  const cpu = await CpuDevice.create({ threads: 2 });
  return { targets: [...targets, { name: "cpu", device: cpu }], close: () => cpu.close() };
}

/** The families of whole models and of tokenizers lie in files of their own. */
async function loadFamilies(): Promise<GoldenFamily[]> {
  const families = [opGoldens];
  for (const file of ["tokenizers.ts", "models.ts"]) {
    const url = new URL(file, import.meta.url);
    if (!existsSync(url)) continue;
    const { golden }: { golden: GoldenFamily } = await import(url.href);
    families.push(golden);
  }
  return families;
}

async function runGroup(
  group: string,
  cases: readonly FoundCase[],
  families: readonly GoldenFamily[],
  targets: readonly GoldenTarget[],
  quiet: boolean,
): Promise<Result[]> {
  const results: Result[] = [];
  for (const found of cases) {
    const family = families.find((candidate) => candidate.claims(found.path, found.json));
    const isDeviceFree = family?.isDeviceFree?.(found.json) ?? false;
    for (const target of isDeviceFree ? targets.slice(0, 1) : targets) {
      const outcome = family
        ? await runCase(family, found, target)
        : { worst: Infinity, failures: ["not a known kind of case"] };
      results.push({ path: found.path, device: isDeviceFree ? "any" : target.name, ...outcome });
    }
  }
  if (!quiet) report(group, results);
  return results;
}

async function runCase(family: GoldenFamily, { path, json }: FoundCase, target: GoldenTarget): Promise<GoldenOutcome> {
  try {
    return await family.run(path, json, target);
  } catch (error) {
    return { worst: Infinity, failures: [error instanceof Error ? error.message : String(error)] };
  }
}

function report(group: string, results: readonly Result[]): void {
  for (const [device, own] of Map.groupBy(results, (result) => result.device)) {
    const failed = own.filter((result) => result.failures.length > 0);
    const worst = own.filter((result) => result.failures.length === 0).reduce((a, b) => Math.max(a, b.worst), 0);
    console.log(
      `${group} [${device}]: ${own.length - failed.length} of ${own.length}, largest passing error ${worst.toFixed(3)} of its tolerance`,
    );
    const notJudged = [...new Set(own.flatMap((result) => result.notJudged ?? []))];
    if (notJudged.length > 0) console.log(`  not judged: ${notJudged.join(", ")}`);
    for (const { path, failures, worst: error } of failed) {
      const size = Number.isFinite(error) ? ` (${error.toPrecision(3)} times the tolerance)` : "";
      console.log(`  FAILED ${path}${size}`);
      for (const failure of failures) console.log(`    ${failure}`);
    }
  }
}

process.exitCode = await main();
