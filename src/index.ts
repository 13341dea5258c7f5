/** `kvasir`: the engine and the errors it throws. The layers below have entries of their own. Only re-exports. */
export * from "./engine/index.ts";
export { ArgumentError, CapacityError, DeviceError, FormatError, KvasirError, ShapeError } from "./tensor/index.ts";
