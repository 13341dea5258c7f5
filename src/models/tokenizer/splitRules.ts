/**
 * How byte-level BPE vocabularies cut a text into words before merging. GGUF files name the rule (`tokenizer.ggml.pre`) without saying
 * what it is; the expressions are those of the models' own tokenizer.json files, applied one after the other.
 */

/** What the name of a rule stands for. */
export interface SplitRule {
  /** Regular expressions in tokenizer.json's syntax; each isolates its matches in what the previous ones left. */
  readonly patterns: readonly string[];
  /** A word that is a token is taken whole, whatever the merges say. */
  readonly ignoreMerges?: true;
  /** Begin with the begin token where the file does not say. */
  readonly addsBos?: true;
  /** The model's tokenizer composes characters (NFC) first. */
  readonly composes?: true;
}

const gpt2Words = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;
const endings = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]";
const afterNumbers = String.raw` ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;
const upper = String.raw`[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`;
const lower = String.raw`[\p{Ll}\p{Lm}\p{Lo}\p{M}]`;
const notInWord = String.raw`[^\r\n\p{L}\p{N}]?`;
const afterNumbersWithSlash = String.raw` ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`;

/** Words with their leading character, numbers of up to `digits` digits. */
const llama3Words = (digits: string) => String.raw`(?:${endings})|${notInWord}\p{L}+|\p{N}${digits}|${afterNumbers}`;

const gpt2: SplitRule = { patterns: [gpt2Words] };
const singleDigits: SplitRule = { patterns: [String.raw`\p{N}`, gpt2Words] };
const llama3: SplitRule = { patterns: [llama3Words("{1,3}")], ignoreMerges: true, addsBos: true };
const llama3WithMerges: SplitRule = { patterns: [llama3Words("{1,3}")] };
const qwen2: SplitRule = { patterns: [llama3Words("")], composes: true };
const tekken: SplitRule = {
  patterns: [String.raw`${notInWord}${upper}*${lower}+|${notInWord}${upper}+${lower}*|\p{N}|${afterNumbersWithSlash}`],
  ignoreMerges: true,
  addsBos: true,
};
const anyEnding = `(?:${endings})?`;
const gpt4oWords = `${notInWord}${upper}*${lower}+${anyEnding}|${notInWord}${upper}+${lower}*${anyEnding}`;
const gpt4o: SplitRule = { patterns: [String.raw`${gpt4oWords}|\p{N}{1,3}|${afterNumbersWithSlash}`] };
const falcon: SplitRule = { patterns: ["[\\p{P}$+<=>^~|`]+", gpt2Words, "[0-9][0-9][0-9]"] };
const deepseekCoder: SplitRule = {
  patterns: [String.raw`[\r\n]`, String.raw`\s?\p{L}+`, String.raw`\s?\p{P}+`, "[一-龥ࠀ-一가-퟿]+", String.raw`\p{N}`],
};
const deepseekV3: SplitRule = {
  patterns: [
    String.raw`\p{N}{1,3}`,
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|" +
      String.raw`[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
  ],
};

/** The rules by the names that GGUF files use. */
export const splitRules: ReadonlyMap<string, SplitRule> = new Map(
  Object.entries({
    default: gpt2,
    "gpt-2": gpt2,
    "phi-2": gpt2,
    olmo: gpt2,
    mpt: gpt2,
    jais: gpt2,
    trillion: gpt2,
    gigachat: gpt2,
    exaone4: gpt2,
    "granite-docling": gpt2,
    starcoder: singleDigits,
    refact: singleDigits,
    "command-r": singleDigits,
    smollm: singleDigits,
    codeshell: singleDigits,
    exaone: singleDigits,
    "minerva-7b": singleDigits,
    "llama-bpe": llama3,
    llama3: llama3,
    "llama-v3": llama3,
    falcon3: llama3,
    "falcon-h1": llama3,
    pixtral: llama3,
    "midm-2.0": llama3,
    lfm2: llama3,
    dbrx: llama3WithMerges,
    "smaug-bpe": llama3WithMerges,
    "chatglm-bpe": llama3WithMerges,
    glm4: llama3WithMerges,
    qwen2,
    "deepseek-r1-qwen": { patterns: qwen2.patterns },
    stablelm2: { patterns: qwen2.patterns },
    megrez: { patterns: qwen2.patterns },
    tekken,
    "gpt-4o": gpt4o,
    llama4: gpt4o,
    falcon,
    "deepseek-coder": deepseekCoder,
    "deepseek-v3": deepseekV3,
    "hunyuan-dense": deepseekV3,
  }),
);
