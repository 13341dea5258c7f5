/** Where an op's `record` function puts its launches: a device and the list of commands for the next run. */

import type { CommandList, CpuDevice } from "../devices/index.ts";

/** A device, and the list of its commands that is being recorded. */
export interface Recorder {
  readonly device: CpuDevice;
  readonly commands: CommandList;
}
