// The Vercel AI SDK against a server: node ai_sdk.mjs URL, prints what came back as JSON.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = process.argv[2];
const compatible = createOpenAICompatible({
  name: "reflux", baseURL, apiKey: "none", includeUsage: true, supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL, apiKey: "none" });
const City = z.object({ city: z.string() });
const weather = tool({
  description: "The weather of a city",
  inputSchema: City,
  execute: async ({ city }) => `rain in ${city}`,
});
const found = {};

for (const [name, model, json] of [
  ["compatible", compatible("x"), compatible("json")],
  ["chat", openai.chat("x"), openai.chat("json")],
  ["responses", openai("x"), openai("json")],
]) {
  const got = (found[name] = {});
  const settings = { model, maxRetries: 0, temperature: 0.5, topP: 0.9, maxOutputTokens: 50 };
  const whole = await generateText({ ...settings, prompt: `one two ${name}` });
  got.text = whole.text;
  got.reasoning = whole.reasoningText ?? "";
  got.finish = whole.finishReason;
  got.tokens = whole.usage.totalTokens;
  const stream = streamText({ ...settings, prompt: `x y z ${name}` });
  got.deltas = [];
  for await (const delta of stream.textStream) got.deltas.push(delta);
  got.streamed = await stream.text;
  got.streamedReasoning = (await stream.reasoningText) ?? "";
  got.streamedTokens = (await stream.usage).totalTokens;
  const stepped = await generateText({
    ...settings, prompt: `Paris ${name}?`, tools: { weather }, stopWhen: stepCountIs(3),
  });
  got.stepped = stepped.text;
  got.steps = stepped.steps.length;
  const chosen = await generateText({
    ...settings, prompt: `Rome ${name}?`, tools: { weather }, toolChoice: "required",
    stopWhen: stepCountIs(1),
  });
  got.called = chosen.toolCalls.map((call) => [call.toolName, call.input]);
  const object = await generateObject({ ...settings, model: json, schema: City, prompt: "Peru?" });
  got.object = object.object;
  const cut = await generateText({ ...settings, maxOutputTokens: 1, prompt: `one two three ${name}` });
  got.cut = [cut.text, cut.finishReason];
}
const tree = streamText({ model: openai("amplified"), prompt: "one and two" });
found.tree = await tree.text;
found.treeReasoning = await tree.reasoningText;
try {
  await generateText({ model: compatible("amplified"), maxRetries: 0, prompt: "x", tools: { weather } });
} catch (error) {
  found.refused = [error.statusCode, error.message];
}
console.log(JSON.stringify(found));
