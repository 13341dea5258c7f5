import { describe, expect, it } from "vitest";
import { splitDocuments } from "./documents.ts";

describe("splitDocuments", () => {
  it("splits at lines that hold only the separator, and takes the line breaks around it away", () => {
    const text = "One\n\nfirst <|endoftext|> not here\n<|endoftext|>\nTwo\n\nsecond\n<|endoftext|>\n";
    expect(splitDocuments(text)).toEqual(["One\n\nfirst <|endoftext|> not here", "Two\n\nsecond"]);
    expect(splitDocuments(text.replaceAll("\n", "\r\n"))).toEqual(splitDocuments(text));
  });

  it("leaves a text without separators as it is", () => expect(splitDocuments("\na\r\nb\n")).toEqual(["\na\r\nb\n"]));
});
