/** Weights files: where their bytes come from, and the tensors in them. Files on disk: file.node.ts. */

export { blobSource, filesFolder } from "./blob.ts";
export { type ByteSource, bytesSource } from "./byteSource.ts";
export { openGguf } from "./gguf.ts";
export { openLlama2c } from "./llama2c.ts";
export { openWeights } from "./openWeights.ts";
export { openSafetensors, openShardedSafetensors } from "./safetensors.ts";
export { isJsonObject, type JsonObject, parseJsonObject, readJsonFile, type SourceFolder } from "./sourceFolder.ts";
export { StringTable } from "./stringTable.ts";
export { readTensor, sliceRows, type TensorEntry, type WeightsFile } from "./weightsFile.ts";
