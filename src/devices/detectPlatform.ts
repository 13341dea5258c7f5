/** Chooses the platform's file at run time, so that each loads only where it works. */

import type { Platform } from "./platform.ts";

/** The platform this code runs on. */
export async function detectPlatform(): Promise<Platform> {
  const isNode = typeof process !== "undefined" && process.versions?.node !== undefined;
  if (isNode) return (await import("./platform.node.ts")).nodePlatform;
  return (await import("./platform.web.ts")).webPlatform;
}
