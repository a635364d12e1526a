"""The OpenAI Python SDK against a running Passerelle: what people really point at it.

    python openai_python.py PATH/TO/passerelle

Starts the binary twice on free loopback ports: open, with the bundled demo model; and guarded by keys.
"""

import array
import base64
import contextlib
import inspect
import json
import os
import pathlib
import sys
import tempfile
import time
import unittest
import urllib.request

import openai
import pydantic

from served import create_key, server

ENCODER = pathlib.Path(__file__).parents[3] / "models/tests/fixtures/encoders/bert"

BINARY = None
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


class Sum(pydantic.BaseModel):
    result: int = pydantic.Field(ge=0, le=999)
    is_even: bool


class GetWeather(pydantic.BaseModel):
    city: str = pydantic.Field(max_length=20)


class Served(unittest.TestCase):
    """The open server: one process for the whole class."""

    @classmethod
    def setUpClass(cls):
        cls.stack = contextlib.ExitStack()
        cls.addClassCleanup(cls.stack.close)
        folder = cls.stack.enter_context(tempfile.TemporaryDirectory())
        url = cls.stack.enter_context(server(BINARY, folder)) + "/v1"
        cls.client = cls.stack.enter_context(openai.OpenAI(base_url=url, api_key="unused", max_retries=0))

    def chat(self, content, **more):
        messages = [{"role": "user", "content": content}]
        more = {"max_tokens": 64, "temperature": 0, **more}
        return self.client.chat.completions.create(model="demo", messages=messages, **more)


class OpenServer(Served):
    def test_models_are_listed_and_retrieved(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["demo"])
        self.assertEqual(self.client.models.retrieve("demo").id, "demo")

    def test_a_chat_is_answered_with_usage(self):
        answer = self.chat("What is 12 + 7?")
        self.assertIn("19", answer.choices[0].message.content)
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)

    def test_a_stream_gives_the_same_text(self):
        whole = self.chat("Tell me a story about a bridge and a cat.")
        stream = self.chat(
            "Tell me a story about a bridge and a cat.", stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        self.assertEqual("".join(deltas), whole.choices[0].message.content)
        self.assertGreater(len(deltas), 3)
        self.assertEqual(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)

    def test_an_offered_tool_is_called(self):
        answer = self.chat("What is the weather in Paris?", tools=[TOOL], tool_choice="auto")
        self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
        call = answer.choices[0].message.tool_calls[0]
        self.assertEqual(call.function.name, "get_weather")
        self.assertEqual(json.loads(call.function.arguments), {"city": "Paris"})

    def test_a_streamed_tool_call_can_be_put_together(self):
        stream = self.chat("What is the weather in Paris?", tools=[TOOL], stream=True)
        name, arguments = "", ""
        for chunk in stream:
            for choice in chunk.choices:
                for call in choice.delta.tool_calls or []:
                    name += call.function.name or ""
                    arguments += call.function.arguments or ""
        self.assertEqual((name, json.loads(arguments)), ("get_weather", {"city": "Paris"}))

    def test_a_tools_result_is_taken_up(self):
        asked = self.chat("What is the weather in Paris?", tools=[TOOL]).choices[0].message
        messages = [
            {"role": "user", "content": "What is the weather in Paris?"},
            asked.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": '{"weather": "sunny"}'},
        ]
        answer = self.client.chat.completions.create(model="demo", messages=messages, tools=[TOOL], max_tokens=64)
        self.assertTrue(answer.choices[0].message.content)

    def test_a_tool_that_must_be_called_is_called(self):
        named = {"type": "function", "function": {"name": "get_weather"}}
        for choice in ("required", named):
            answer = self.chat("Tell me a story about a bridge and a cat.", tools=[TOOL], tool_choice=choice)
            calls = answer.choices[0].message.tool_calls
            self.assertEqual({call.function.name for call in calls}, {"get_weather"})
            for call in calls:
                self.assertIsInstance(json.loads(call.function.arguments)["city"], str)

    def test_an_answer_is_parsed_into_a_model(self):
        answer = self.client.chat.completions.parse(
            model="demo",
            messages=[{"role": "user", "content": "What is 12 + 7?"}],
            response_format=Sum,
            temperature=0,
            max_tokens=128,
        )
        self.assertIsInstance(answer.choices[0].message.parsed, Sum)

    def test_the_stream_helper_parses_what_it_streams(self):
        messages = [{"role": "user", "content": "What is 12 + 7?"}]
        asked = {"model": "demo", "messages": messages, "response_format": Sum, "max_tokens": 64, "temperature": 0}
        with self.client.chat.completions.stream(**asked) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
            final = stream.get_final_completion().choices[0].message
        self.assertEqual("".join(deltas), final.content)
        self.assertEqual(Sum.model_validate_json(final.content), final.parsed)

    def test_a_strict_tool_is_parsed_into_a_model(self):
        answer = self.client.chat.completions.parse(
            model="demo",
            messages=[{"role": "user", "content": "What is the weather in Paris?"}],
            tools=[openai.pydantic_function_tool(GetWeather, name="get_weather")],
            tool_choice="required",
            temperature=0,
            max_tokens=256,
        )
        for call in answer.choices[0].message.tool_calls:
            self.assertIsInstance(call.function.parsed_arguments, GetWeather)

    def test_what_the_helpers_parsed_goes_back_as_it_came(self):
        asked = [{"role": "user", "content": "What is the weather in Paris?"}]
        tools = [openai.pydantic_function_tool(GetWeather, name="get_weather")]
        options = {"model": "demo", "tools": tools, "temperature": 0, "max_tokens": 256}
        parsed = self.client.chat.completions.parse(messages=asked, tool_choice="required", **options)
        with self.client.chat.completions.stream(messages=asked, tool_choice="required", **options) as stream:
            streamed = stream.get_final_completion()
        for answer in (parsed, streamed):
            said = answer.choices[0].message
            results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in said.tool_calls]
            self.assertTrue(results)
            self.client.chat.completions.create(messages=[*asked, said, *results], **options)
        question = {"role": "user", "content": "What is 12 + 7?"}
        said = self.client.chat.completions.parse(
            model="demo", messages=[question], response_format=Sum, temperature=0, max_tokens=128
        )
        answer = self.client.chat.completions.create(
            model="demo", messages=[question, said.choices[0].message, question], temperature=0, max_tokens=64
        )
        self.assertTrue(answer.choices[0].message.content)

    def test_a_completion_echoes_and_gives_log_probabilities(self):
        answer = self.client.completions.create(
            model="demo", prompt="12+7=", max_tokens=4, temperature=0, echo=True, logprobs=2
        )
        self.assertTrue(answer.choices[0].text.startswith("12+7="))
        self.assertEqual(len(answer.choices[0].logprobs.tokens), len(answer.choices[0].logprobs.token_logprobs))

    def test_a_response_is_created_and_streamed(self):
        whole = self.client.responses.create(model="demo", input="What is 12 + 7?", temperature=0, max_output_tokens=64)
        self.assertEqual(whole.status, "completed")
        self.assertIn("19", whole.output_text)
        with self.client.responses.stream(
            model="demo", input="What is 12 + 7?", temperature=0, max_output_tokens=64
        ) as stream:
            deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
            final = stream.get_final_response()
        self.assertEqual("".join(deltas), whole.output_text)
        self.assertEqual(final.output_text, whole.output_text)
        self.assertEqual(final.usage.total_tokens, whole.usage.total_tokens)

    def test_a_response_calls_a_function_and_takes_its_output(self):
        tool = {"type": "function", "strict": False, **TOOL["function"]}
        asked = [{"role": "user", "content": "What is the weather in Paris?"}]
        answer = self.client.responses.create(model="demo", input=asked, tools=[tool], temperature=0)
        call = next(item for item in answer.output if item.type == "function_call")
        self.assertEqual((call.name, json.loads(call.arguments)), ("get_weather", {"city": "Paris"}))
        result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"weather": "sunny"}'}
        told = self.client.responses.create(model="demo", input=[*asked, *answer.output, result], tools=[tool])
        self.assertTrue(told.output_text)

    def test_a_batch_runs_and_its_output_is_downloaded(self):
        messages = [{"role": "user", "content": "What is 12 + 7?"}]
        body = {"model": "demo", "messages": messages, "max_tokens": 16, "temperature": 0}
        lines = [
            {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(3)
        ]
        content = "\n".join(json.dumps(line) for line in lines).encode()
        file = self.client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = self.client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        deadline = time.monotonic() + 120
        while batch.status not in ("completed", "failed", "expired", "cancelled"):
            self.assertLess(time.monotonic(), deadline, batch.status)
            batch = self.client.batches.retrieve(batch.id)
        self.assertEqual((batch.request_counts.completed, batch.request_counts.failed), (3, 0))
        output = [json.loads(line) for line in self.client.files.content(batch.output_file_id).text.splitlines()]
        self.assertEqual(sorted(line["custom_id"] for line in output), ["r0", "r1", "r2"])
        self.assertIn("19", output[0]["response"]["body"]["choices"][0]["message"]["content"])
        self.assertIn(batch.id, [listed.id for listed in self.client.batches.list()])
        self.assertTrue(self.client.files.delete(batch.output_file_id).deleted)

    def test_a_response_is_parsed_into_a_type(self):
        response = self.client.responses.parse(
            model="demo", input="What is 12 + 7?", text_format=Sum, max_output_tokens=64, temperature=0
        )
        self.assertIsInstance(response.output_parsed, Sum)

    def test_what_a_response_held_goes_back_as_it_came_and_as_it_is_dumped(self):
        options = {"model": "demo", "temperature": 0, "max_output_tokens": 256}
        schema = GetWeather.model_json_schema()
        tool = {"type": "function", "name": "get_weather", "parameters": schema, "strict": False}
        asked = {"role": "user", "content": "What is the weather in Paris?"}
        calls = self.client.responses.parse(input=[asked], tools=[tool], tool_choice="required", **options).output
        results = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
        self.assertTrue(results)
        question = {"role": "user", "content": "What is 12 + 7?"}
        parsed = self.client.responses.parse(input=[question], text_format=Sum, **options).output
        for dumped in (list, lambda items: [item.model_dump() for item in items]):
            self.client.responses.create(input=[asked, *dumped(calls), *results], **options)
            answer = self.client.responses.create(input=[question, *dumped(parsed), question], **options)
            self.assertIn("19", answer.output_text)

    def test_what_needs_a_memory_is_refused_by_name(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.responses.create(model="demo", input="hi", store=True)
        self.assertEqual(caught.exception.param, "store")

    def test_errors_have_their_types(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hi"}])
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat("hi", max_tokens=-1)
        self.assertEqual(caught.exception.param, "max_tokens")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat("hi", extra_body={"temprature": 0})
        self.assertEqual(caught.exception.param, "temprature")


class EveryParameter(Served):
    """What the installed SDK can send: a parameter that a new version brings is noticed here."""

    def test_every_parameter_of_the_sdk_is_honoured_or_refused_by_name(self):
        with urllib.request.urlopen(str(self.client.base_url).removesuffix("v1/") + "openapi.json") as answer:
            paths = json.load(answer)["paths"]
        calls = {
            "/v1/chat/completions": self.client.chat.completions.create,
            "/v1/completions": self.client.completions.create,
            "/v1/responses": self.client.responses.create,
            "/v1/embeddings": self.client.embeddings.create,
            "/v1/files": self.client.files.create,
            "/v1/batches": self.client.batches.create,
        }
        of_the_client = {"extra_headers", "extra_query", "extra_body", "timeout"}
        for path, call in calls.items():
            (content,) = paths[path]["post"]["requestBody"]["content"].values()
            sent = set(inspect.signature(call).parameters) - of_the_client
            self.assertEqual(sent - set(content["schema"]["properties"]), set(), path)

    def test_what_is_described_as_refused_is_refused_by_name(self):
        for name, value in [("moderation", {"model": "x"}), ("prompt_cache_options", {"ttl": "1h"})]:
            with self.assertRaises(openai.BadRequestError) as caught:
                self.chat("hi", extra_body={name: value})
            self.assertEqual(caught.exception.param, name)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.files.create(
                file=b"{}", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
            )
        self.assertEqual(caught.exception.param, "expires_after")


class Encoders(unittest.TestCase):
    """A tiny encoder, whose embeddings the reference implementation computed too."""

    def test_embeddings_are_those_of_the_reference_in_both_formats(self):
        expected = [text for text in json.loads((ENCODER / "texts.json").read_text()) if "[SEP]" not in text["text"]]
        with tempfile.TemporaryDirectory() as folder, server(BINARY, folder, "--model", f"bert={ENCODER}") as address:
            with openai.OpenAI(base_url=address + "/v1", api_key="unused", max_retries=0) as client:
                plain = [text for text in expected if text["prompt_name"] is None]
                inputs = [text["text"] for text in plain]
                for encoding in [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}]:
                    answer = client.embeddings.create(model="bert", input=inputs, **encoding)
                    self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens)
                    for text, entry in zip(plain, answer.data, strict=True):
                        vector = unpacked(entry.embedding)
                        self.assertEqual(len(vector), len(text["embedding"]))
                        for found, wanted in zip(vector, text["embedding"]):
                            self.assertAlmostEqual(found, wanted, delta=2e-4 + 1e-3 * abs(wanted))
                short = client.embeddings.create(model="bert", input=inputs[1], dimensions=5).data[0].embedding
                self.assertAlmostEqual(sum(x * x for x in short), 1.0, places=4)
                with self.assertRaises(openai.BadRequestError) as caught:
                    client.chat.completions.create(model="bert", messages=[{"role": "user", "content": "hi"}])
                self.assertIn("/v1/embeddings", caught.exception.message)


def unpacked(embedding):
    """The SDK unpacks base64 that it asked for itself, and hands on what the caller asked for."""
    if isinstance(embedding, str):
        return array.array("f", base64.b64decode(embedding))
    return embedding


class GuardedServer(unittest.TestCase):
    def test_keys_are_asked_for_and_limits_kept(self):
        with tempfile.TemporaryDirectory() as folder:
            key = create_key(BINARY, folder, "alice", "--requests-per-minute", "1")
            with server(BINARY, folder) as address:
                url = address + "/v1"
                messages = [{"role": "user", "content": "Hello"}]
                with openai.OpenAI(base_url=url, api_key="sk-wrong", max_retries=0) as stranger:
                    with self.assertRaises(openai.AuthenticationError):
                        stranger.models.list()
                with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as alice:
                    alice.chat.completions.create(model="demo", messages=messages, max_tokens=4)
                    with self.assertRaises(openai.RateLimitError) as caught:
                        alice.chat.completions.create(model="demo", messages=messages, max_tokens=4)
                self.assertIn("requests", caught.exception.message)
                self.assertGreater(int(caught.exception.response.headers["retry-after"]), 0)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    BINARY = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
