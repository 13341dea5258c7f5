import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { ArgumentError, FormatError } from "../../tensor/errors.ts";
import { type ChatMessage, ChatTemplate } from "./index.ts";

interface Expected {
  bos_token: string;
  eos_token: string;
  templates: Record<string, string>;
  cases: {
    template: string;
    chat: string;
    messages: ChatMessage[];
    add_generation_prompt: boolean;
    tools?: unknown[];
    text?: string;
    error?: string;
  }[];
}

const expected: Expected = JSON.parse(
  readFileSync(new URL("../../../test/fixtures/tokenizer/chat.json", import.meta.url), "utf8"),
);

describe("ChatTemplate", () => {
  it.each(Object.keys(expected.templates))("renders the template %s as transformers does", (name) => {
    const { bos_token, eos_token } = expected;
    const template = new ChatTemplate(expected.templates[name], { bos_token, eos_token });
    for (const { chat, messages, add_generation_prompt, tools, text, error } of expected.cases.filter(
      (c) => c.template === name,
    )) {
      const render = () => template.render(messages, { addGenerationPrompt: add_generation_prompt, tools });
      if (error === undefined) expect(render(), chat).toBe(text);
      else expect(render, chat).toThrow(new ArgumentError(`The chat template refuses these messages: ${error}`));
    }
  });

  it("takes the tool_use template when there are tools, and further variables", () => {
    const template = new ChatTemplate({ default: "plain {{ mood }}", tool_use: "{{ tools | length }} tools" });
    expect(template.render([], { variables: { mood: "calm" } })).toBe("plain calm");
    expect(template.render([], { tools: [{}, {}] })).toBe("2 tools");
  });

  it("tells tools that are none from tools that are undefined, as transformers does", () => {
    const template = new ChatTemplate("{% if tools is defined and tools is none %}none{% endif %}");
    expect(template.render([])).toBe("none");
  });

  it("says that a template cannot be parsed", () => {
    expect(() => new ChatTemplate("{% if %}").render([])).toThrow(FormatError);
    expect(() => new ChatTemplate("{% for x in %}").render([])).toThrow('The chat template "default" cannot be parsed');
    expect(() => new ChatTemplate({ rag: "x" }).render([])).toThrow('named rag: none is "default"');
  });
});
