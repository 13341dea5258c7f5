/** Element and weight types, conversions, shapes and errors: what every other folder is built on. */

export { type BlockDequantizer, blockDequantizer, dequantize } from "./dequantize/index.ts";
export { type ElementType, elementBytes, elementTypes } from "./elementTypes.ts";
export { ArgumentError, CapacityError, DeviceError, FormatError, KvasirError, ShapeError } from "./errors.ts";
export {
  bf16FromF32,
  bf16ToF32,
  e4m3ToF32,
  e5m2ToF32,
  f16FromF32,
  f16ToF32,
  f32FromBf16,
  f32FromF16,
  f32ToBf16,
  f32ToE4m3,
  f32ToE5m2,
  f32ToF16,
} from "./float16.ts";
export { formatShape, numElements, requireShape, type Shape, sameShape } from "./shape.ts";
export { type WeightBlock, type WeightType, weightBlock, weightBytes, weightTypes } from "./weightTypes.ts";
