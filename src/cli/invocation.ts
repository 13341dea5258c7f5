/** How this program was started, so that the commands it suggests can be typed as they stand, and what it bundles. */

import { fileURLToPath } from "node:url";

/** `npm run kvasir --` in a checkout, where the sources run; `npx kvasir` where the package is installed. */
export const PROGRAM = import.meta.url.endsWith(".ts") ? "npm run kvasir --" : "npx kvasir";

/** The model that a command runs when none is named: assets/README.md says what it is. */
export const BUNDLED_MODEL = fileURLToPath(new URL("../../assets/tales-5m-q8_0.gguf", import.meta.url));
