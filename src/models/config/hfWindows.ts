/** Which layers of a config.json have a sliding window: listed in `layer_types`, or following from each family's older settings. */

import type { Fields } from "./fields.ts";
import type { ModelFamily } from "./modelConfig.ts";

/** The window of each layer in keys, the query's own included; null: none. Throws FormatError for a kind of layer that is not supported. */
export function hfSlidingWindows(fields: Fields, family: ModelFamily, numLayers: number): (number | null)[] {
  const isSliding = slidingLayers(fields, family, numLayers);
  if (!isSliding.includes(true)) return isSliding.map(() => null);
  const window = fields.size("sliding_window");
  return isSliding.map((sliding) => (sliding ? window : null));
}

function slidingLayers(fields: Fields, family: ModelFamily, numLayers: number): boolean[] {
  const layers = Array.from({ length: numLayers }, (_, layer) => layer);
  const isQwen = family === "qwen2" || family === "qwen3";
  if (isQwen && !fields.boolean("use_sliding_window", false)) return layers.map(() => false);
  if (fields.get("layer_types") !== undefined) return listedLayers(fields, numLayers);
  const hasWindow = fields.get("sliding_window") !== undefined;
  switch (family) {
    case "llama":
      return layers.map(() => false);
    case "mistral":
    case "phi3":
      return layers.map(() => hasWindow);
    case "qwen2":
    case "qwen3": {
      const begin = fields.get("max_window_layers") === 0 ? 0 : fields.size("max_window_layers", 28);
      return layers.map((layer) => hasWindow && layer >= begin);
    }
    case "gemma2":
      return layers.map((layer) => layer % 2 === 0);
    case "gemma3": {
      const pattern = fields.size("sliding_window_pattern", fields.size("_sliding_window_pattern", 6));
      return layers.map((layer) => (layer + 1) % pattern !== 0);
    }
  }
}

function listedLayers(fields: Fields, numLayers: number): boolean[] {
  const types = fields.get("layer_types");
  if (!Array.isArray(types) || types.length !== numLayers)
    throw fields.error("layer_types", types, `a list of ${numLayers} names`);
  return types.map((type: unknown) => {
    if (type === "sliding_attention") return true;
    if (type === "full_attention") return false;
    throw fields.error("layer_types", type, "full_attention or sliding_attention for each layer");
  });
}
