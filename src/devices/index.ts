/** The CPU device: shared memory, worker pool, command lists. */

export type { DeviceBuffer } from "./allocator.ts";
export { CommandList, type LaunchOptions } from "./commands.ts";
export { CpuDevice, type CpuDeviceOptions, type DeviceStats } from "./cpuDevice.ts";
export type { DeviceKernel, KernelModule, KernelParameter } from "./kernelStore.ts";
