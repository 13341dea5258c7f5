/** What a model is (ModelConfig), which tensors it has, and how both are found in a config.json, GGUF metadata or a llama2.c header. */

export { type ExpectedTensor, expectedTensors } from "./expectedTensors.ts";
export { ggufConfig } from "./ggufConfig.ts";
export { hfConfig } from "./hfConfig.ts";
export { llama2cConfig } from "./llama2cConfig.ts";
export { locateTensors } from "./locateTensors.ts";
export { type LayerConfig, type ModelConfig, type ModelFamily, modelFamilies } from "./modelConfig.ts";
export { type ModelFiles, openModel } from "./openModel.ts";
