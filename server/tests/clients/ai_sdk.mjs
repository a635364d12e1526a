// The Vercel AI SDK against a running Passerelle.
//
//     npm install && node ai_sdk.mjs PATH/TO/passerelle

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

import { serve } from "./server.mjs";

let server, model;

before(async () => {
  server = await serve(process.argv[2]);
  model = createOpenAICompatible({ name: "passerelle", baseURL: `${server.url}/v1`, apiKey: "unused", includeUsage: true })("demo");
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
