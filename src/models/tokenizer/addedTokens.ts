/** Tokens that are cut out of the text as they stand, before any model sees it: the cutting, not what becomes of the rest. */

/** One entry of tokenizer.json's `added_tokens`, or a control token of a GGUF file. */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  /** Carries control meaning: recognised only on request, left out of decoded text on request. */
  readonly special: boolean;
  /** Matched in the normalised text instead of the text as given. */
  readonly normalized: boolean;
  /** Swallows white space before (`lstrip`) and after (`rstrip`) it. */
  readonly lstrip: boolean;
  readonly rstrip: boolean;
  /** Matches only where no letter, digit or underscore touches it. */
  readonly singleWord: boolean;
}

/** A stretch of text, or a token that stands between two. */
export type Section = string | AddedToken;

/** Cuts texts at added tokens: the leftmost match first, of those the longest. */
export class AddedTokenSplitter {
  readonly #root: TrieNode = { children: new Map() };
  /** 1 for each UTF-16 code unit that some token begins with: all that most of a text is asked. */
  readonly #begins = new Uint8Array(0x10000);

  constructor(tokens: Iterable<AddedToken>) {
    for (const token of tokens) if (token.content.length > 0) this.#add(token);
  }

  /** The sections of `text` in order; no empty strings. */
  split(text: string): Section[] {
    const sections: Section[] = [];
    let textStart = 0;
    for (let at = 0; at < text.length; ) {
      const token = this.#begins[text.charCodeAt(at)] === 1 ? this.#longestMatch(text, at) : undefined;
      if (token === undefined) {
        at++;
        continue;
      }
      let begin = at;
      let end = at + token.content.length;
      at = end;
      if (token.singleWord && (isWord(text[begin - 1]) || isWord(text[end]))) continue;
      if (token.lstrip) while (begin > textStart && isSpace(text[begin - 1])) begin--;
      if (token.rstrip) while (end < text.length && isSpace(text[end])) end++;
      if (begin > textStart) sections.push(text.slice(textStart, begin));
      sections.push(token);
      textStart = at = end;
    }
    if (textStart < text.length) sections.push(text.slice(textStart));
    return sections;
  }

  #add(token: AddedToken): void {
    this.#begins[token.content.charCodeAt(0)] = 1;
    let node = this.#root;
    for (let i = 0; i < token.content.length; i++) {
      const unit = token.content.charCodeAt(i);
      let child = node.children.get(unit);
      if (child === undefined) {
        child = { children: new Map() };
        node.children.set(unit, child);
      }
      node = child;
    }
    node.token ??= token;
  }

  #longestMatch(text: string, at: number): AddedToken | undefined {
    let longest: AddedToken | undefined;
    let node = this.#root.children.get(text.charCodeAt(at));
    while (node !== undefined) {
      longest = node.token ?? longest;
      node = ++at < text.length ? node.children.get(text.charCodeAt(at)) : undefined;
    }
    return longest;
  }
}

/** A trie over UTF-16 code units. */
interface TrieNode {
  readonly children: Map<number, TrieNode>;
  token?: AddedToken;
}

function isWord(character: string | undefined): boolean {
  return character !== undefined && /[\p{L}\p{N}_]/u.test(character);
}

function isSpace(character: string): boolean {
  return /\s/.test(character);
}
