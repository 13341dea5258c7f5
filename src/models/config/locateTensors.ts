/**
 * Finds the tensors of a model in its file: every expected one must be there in the right shape, and none may be left over, because a tensor
 * that the forward pass does not know means another model.
 */

import { FormatError, formatShape, sameShape } from "../../tensor/index.ts";
import { sliceRows, type TensorEntry, type WeightsFile } from "../formats/index.ts";
import { expectedTensors } from "./expectedTensors.ts";
import type { ModelConfig } from "./modelConfig.ts";
import { ggufTensorNames, hfTensorNames, ownTensorNames, type TensorNames } from "./tensorNames.ts";

/**
 * Kvasir's name (see expectedTensors) -> where the tensor lies. Parts of fused matrices are row ranges of them. Throws FormatError naming the
 * tensor that is missing, has another shape, or belongs to no part of the model.
 */
export function locateTensors(file: WeightsFile, config: ModelConfig): Map<string, TensorEntry> {
  const names = namesFor(file, config);
  const located = new Map<string, TensorEntry>();
  const used = new Set<string>();
  const expected = expectedTensors(config);
  const rowsOf = new Map(expected.map(({ name, shape }) => [name, shape[0]]));
  for (const { name, shape } of expected) {
    const entry = find(file, names, name, rowsOf);
    if (!sameShape(entry.shape, shape)) {
      throw new FormatError(
        `${file.label}: tensor ${entry.name} (${name}) must have shape ${formatShape(shape)}, got ${formatShape(entry.shape)}`,
      );
    }
    used.add(entry.name);
    located.set(name, entry);
  }
  for (const name of file.tensors.keys()) {
    if (!used.has(name) && !names.isIgnored(name)) {
      throw new FormatError(
        `${file.label}: tensor ${name} belongs to no part of a ${config.family} model of this configuration`,
      );
    }
  }
  return located;
}

function namesFor(file: WeightsFile, config: ModelConfig): TensorNames {
  switch (file.format) {
    case "gguf":
      return ggufTensorNames(config);
    case "safetensors":
      return hfTensorNames(config, (name) => file.tensors.has(name));
    case "llama2c":
      return ownTensorNames(config);
  }
}

function find(file: WeightsFile, names: TensorNames, name: string, rowsOf: ReadonlyMap<string, number>): TensorEntry {
  const match = /^layers\.(\d+)\.(.*)$/.exec(name);
  const prefix = match === null ? "" : names.layerPrefix(Number(match[1]));
  const part = match === null ? name : match[2];
  const fileName = match === null ? names.outer.get(part) : names.layer.get(part);
  const own = fileName === undefined ? undefined : file.tensors.get(prefix + fileName);
  if (own !== undefined) return own;

  const fusion = match === null ? undefined : names.fusions.find(({ parts }) => parts.includes(part));
  const fused = fusion === undefined ? undefined : file.tensors.get(prefix + fusion.name);
  if (match === null || fusion === undefined || fused === undefined) {
    const wanted = [fileName, fusion?.name]
      .filter((candidate) => candidate !== undefined)
      .map((candidate) => prefix + candidate);
    throw new FormatError(`${file.label}: tensor ${wanted.join(" or ")} (${name}) is missing`);
  }
  const rows = fusion.parts.map((other) => rowsOf.get(`layers.${match[1]}.${other}`) ?? 0);
  const numRows = rows.reduce((sum, count) => sum + count, 0);
  if (fused.shape[0] !== numRows) {
    throw new FormatError(
      `${file.label}: tensor ${fused.name} has ${fused.shape[0]} rows, but ${fusion.parts.join(", ")} together have ${numRows}`,
    );
  }
  const index = fusion.parts.indexOf(part);
  const begin = rows.slice(0, index).reduce((sum, count) => sum + count, 0);
  return sliceRows(fused, begin, begin + rows[index]);
}
