// The OpenAI Node SDK against a running Passerelle, through its typed helpers.
//
//     npm install && node openai_node.mjs PATH/TO/passerelle PATH/TO/models/tests/fixtures/encoders/bert

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import OpenAI, { toFile } from "openai";

import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { assertClose, referenceTexts, serve } from "./server.mjs";

const [binary, encoder] = process.argv.slice(2);
const messages = [{ role: "user", content: "What is 12 + 7?" }];
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const Sum = z.object({ result: z.int().min(0).max(999), is_even: z.boolean() });
let server, client;

before(async () => {
  server = await serve(binary, "--model", "demo", "--model", `bert=${encoder}`);
  client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "unused", maxRetries: 0 });
});
after(async () => server.stop());

test("models are listed", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.deepEqual(ids, ["bert", "demo"]);
});

test("the stream helper adds up to the whole answer", async () => {
  const whole = await client.chat.completions.create({ model: "demo", messages, temperature: 0, max_tokens: 64 });
  const stream = client.chat.completions.stream({ model: "demo", messages, temperature: 0, max_tokens: 64 });
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.content, whole.choices[0].message.content);
  assert.match(final.choices[0].message.content, /19/);
});

test("the tool runner calls a function and goes on", async () => {
  const called = [];
  const tool = {
    type: "function",
    function: {
      ...weather.function,
      parse: JSON.parse,
      function: ({ city }) => { called.push(city); return { weather: "sunny" }; },
    },
  };
  const asked = [{ role: "user", content: "What is the weather in Paris?" }];
  const runner = client.chat.completions.runTools({ model: "demo", messages: asked, tools: [tool], temperature: 0, max_tokens: 64 });
  assert.ok(await runner.finalContent());
  assert.deepEqual(called, ["Paris"]);
});

test("an answer is parsed into a type", async () => {
  const response_format = zodResponseFormat(Sum, "sum");
  const answer = await client.chat.completions.parse({ model: "demo", messages, response_format, temperature: 0, max_tokens: 64 });
  assert.deepEqual(Sum.parse(answer.choices[0].message.parsed), answer.choices[0].message.parsed);
  const text = { format: zodTextFormat(Sum, "sum") };
  const response = await client.responses.parse({ model: "demo", input: "What is 12 + 7?", text, temperature: 0, max_output_tokens: 64 });
  assert.deepEqual(Sum.parse(response.output_parsed), response.output_parsed);
});

test("embeddings are those of the reference, in both formats", async () => {
  const texts = referenceTexts(encoder);
  const input = texts.map(({ text }) => text);
  for (const format of [{}, { encoding_format: "float" }]) {
    const { data } = await client.embeddings.create({ model: "bert", input, ...format });
    assert.equal(data.length, texts.length);
    data.forEach(({ embedding }, at) => assertClose(embedding, texts[at].embedding));
  }
});

test("a response is streamed with typed events", async () => {
  const stream = client.responses.stream({ model: "demo", input: "What is 12 + 7?", temperature: 0, max_output_tokens: 64 });
  let text = "";
  stream.on("response.output_text.delta", (event) => { text += event.delta; });
  const final = await stream.finalResponse();
  assert.equal(final.output_text, text);
  assert.match(text, /19/);
});

test("a batch runs and its output is downloaded", async () => {
  const lines = [1, 2, 3].map((n) => JSON.stringify({
    custom_id: `r${n}`, method: "POST", url: "/v1/chat/completions", body: { model: "demo", messages, max_tokens: 16 },
  }));
  const input = await client.files.create({ purpose: "batch", file: await toFile(Buffer.from(lines.join("\n")), "in.jsonl") });
  let batch = await client.batches.create({ input_file_id: input.id, endpoint: "/v1/chat/completions", completion_window: "24h" });
  const deadline = Date.now() + 120_000;
  while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
    assert.ok(Date.now() < deadline, `the batch is still ${batch.status}`);
    batch = await client.batches.retrieve(batch.id);
  }
  assert.deepEqual(batch.request_counts, { total: 3, completed: 3, failed: 0 });
  const output = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual(output.map((line) => line.custom_id).sort(), ["r1", "r2", "r3"]);
});

test("errors have their types", async () => {
  await assert.rejects(client.chat.completions.create({ model: "nobody", messages }), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ model: "demo", messages, temperature: 9 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "temperature");
    return true;
  });
});
