/** The CPU device: shared memory, worker pool, command lists. */

export type { DeviceBuffer } from "./allocator.ts";
export { CommandList, type LaunchOptions } from "./commands.ts";
export { CpuDevice, type DeviceStats } from "./cpuDevice.ts";
export type { CpuDeviceOptions } from "./cpuOptions.ts";
export { GrowingBuffer } from "./growingBuffer.ts";
export type { DeviceKernel, KernelModule, KernelParameter } from "./kernelStore.ts";
