// The OpenAI npm SDK against a server: node openai_sdk.mjs URL, prints what came back as JSON.
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const City = z.object({ city: z.string() });
const user = (content) => [{ role: "user", content }];
const found = {};

found.models = (await client.models.list()).data.map((model) => model.id);
const chat = await client.chat.completions.create({ model: "x", messages: user("one two") });
found.chat = chat.choices[0].message.content;

const stream = client.chat.completions.stream({ model: "x", messages: user("x y z") });
found.deltas = [];
stream.on("content", (delta) => found.deltas.push(delta));
found.streamed = await stream.finalContent();

const parsed = await client.chat.completions.parse({
  model: "json",
  messages: user("Peru?"),
  response_format: zodResponseFormat(City, "city"),
});
found.parsed = parsed.choices[0].message.parsed;

const runner = client.chat.completions.runTools({
  model: "x",
  messages: user("Paris?"),
  tools: [zodFunction({ name: "weather", parameters: City, function: ({ city }) => `rain in ${city}` })],
});
found.ran = await runner.finalContent();

const tree = await client.chat.completions.create({ model: "amplified", messages: user("one and two") });
found.tree = tree.choices[0].message.content;

const first = await client.responses.create({ model: "x", input: "one" });
found.response = first.output_text;
const next = await client.responses.create({ model: "x", input: "two", previous_response_id: first.id });
found.next = next.output_text;
found.retrieved = (await client.responses.retrieve(first.id)).output_text;

found.events = [];
const events = client.responses.stream({ model: "x", input: "x y z" });
for await (const event of events) found.events.push(event.type);
found.final = (await events.finalResponse()).output_text;

const typed = await client.responses.parse({
  model: "json",
  input: "Peru?",
  text: { format: zodTextFormat(City, "city") },
});
found.output_parsed = typed.output_parsed;

try {
  await client.chat.completions.create({
    model: "amplified", messages: user("x"), response_format: { type: "json_object" },
  });
} catch (error) {
  found.refused = [error.status, error.code, error.param];
}
await client.responses.delete(first.id);
console.log(JSON.stringify(found));
