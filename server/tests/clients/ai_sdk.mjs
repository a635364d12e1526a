// The Vercel AI SDK against a running Passerelle.
//
//     npm install && node ai_sdk.mjs PATH/TO/passerelle PATH/TO/models/tests/fixtures/encoders/bert

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, embedMany, generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

import { assertClose, referenceTexts, serve } from "./server.mjs";

const [binary, encoder] = process.argv.slice(2);
let server, model, embedder;

before(async () => {
  server = await serve(binary, "--model", "demo", "--model", `bert=${encoder}`);
  const provider = createOpenAICompatible({
    name: "passerelle", baseURL: `${server.url}/v1`, apiKey: "unused", includeUsage: true, supportsStructuredOutputs: true,
  });
  model = provider("demo");
  embedder = provider.textEmbeddingModel("bert");
});
after(async () => server.stop());

test("streamText streams the text that generateText gives", async () => {
  const ask = { model, prompt: "What is 12 + 7?", temperature: 0, maxOutputTokens: 64 };
  const whole = await generateText(ask);
  const stream = streamText(ask);
  let text = "";
  for await (const part of stream.textStream) text += part;
  assert.equal(text, whole.text);
  assert.match(text, /19/);
  assert.equal((await stream.usage).totalTokens, whole.usage.totalTokens);
});

test("a tool is called and its result is taken up", async () => {
  const called = [];
  const get_weather = tool({
    description: "Get the weather in a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => { called.push(city); return { weather: "sunny" }; },
  });
  const answer = await generateText({
    model, prompt: "What is the weather in Paris?", tools: { get_weather }, stopWhen: stepCountIs(3), temperature: 0, maxOutputTokens: 64,
  });
  assert.deepEqual(called, ["Paris"]);
  assert.ok(answer.text);
});

test("generateObject gives an object of the schema", async () => {
  const schema = z.object({ result: z.int().min(0).max(999), is_even: z.boolean() });
  const { object } = await generateObject({ model, schema, prompt: "What is 12 + 7?", temperature: 0, maxOutputTokens: 64 });
  assert.deepEqual(schema.parse(object), object);
});

test("embed and embedMany give the vectors of the reference", async () => {
  const texts = referenceTexts(encoder);
  const one = await embed({ model: embedder, value: texts[0].text });
  assertClose(one.embedding, texts[0].embedding);
  const many = await embedMany({ model: embedder, values: texts.map(({ text }) => text) });
  assert.equal(many.embeddings.length, texts.length);
  many.embeddings.forEach((embedding, at) => assertClose(embedding, texts[at].embedding));
});
