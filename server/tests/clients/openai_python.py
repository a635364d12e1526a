"""The OpenAI Python SDK against a running Passerelle: what people really point at it.

    python openai_python.py PATH/TO/passerelle

Starts the binary twice on free loopback ports: open, with the bundled demo model; and guarded by keys.
"""

import array
import base64
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import unittest

import openai
import pydantic

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


def environment(folder):
    """Nothing of the caller's own configuration reaches the server."""
    return {"PATH": os.environ["PATH"], "HOME": folder, "XDG_DATA_HOME": folder, "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def server(folder, *arguments):
    command = [BINARY, "serve", "--listen", "127.0.0.1:0", "--data-dir", folder, "--log-level", "warn", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(folder))
    try:
        line = process.stdout.readline()
        if not line.startswith("ready: http://"):
            raise RuntimeError(f"no ready line, but {line!r}")
        yield line.removeprefix("ready: ").strip() + "/v1"
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
        process.stdout.close()
    if code != 0:
        raise RuntimeError(f"the server ended with {code} after SIGTERM")


def create_key(folder, name, *limits):
    command = [BINARY, "key", "create", name, "--data-dir", folder, "--json", *limits]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(folder)).stdout
    return json.loads(printed)["key"]


class Served(unittest.TestCase):
    """The open server: one process for the whole class."""

    @classmethod
    def setUpClass(cls):
        cls.stack = contextlib.ExitStack()
        cls.addClassCleanup(cls.stack.close)
        folder = cls.stack.enter_context(tempfile.TemporaryDirectory())
        url = cls.stack.enter_context(server(folder))
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

    def test_a_completion_echoes_and_gives_log_probabilities(self):
        answer = self.client.completions.create(
            model="demo", prompt="12+7=", max_tokens=4, temperature=0, echo=True, logprobs=2
        )
        self.assertTrue(answer.choices[0].text.startswith("12+7="))
        self.assertEqual(len(answer.choices[0].logprobs.tokens), len(answer.choices[0].logprobs.token_logprobs))

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


class Encoders(unittest.TestCase):
    """A tiny encoder, whose embeddings the reference implementation computed too."""

    def test_embeddings_are_those_of_the_reference_in_both_formats(self):
        expected = [text for text in json.loads((ENCODER / "texts.json").read_text()) if "[SEP]" not in text["text"]]
        with tempfile.TemporaryDirectory() as folder, server(folder, "--model", f"bert={ENCODER}") as url:
            with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
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
            key = create_key(folder, "alice", "--requests-per-minute", "1")
            with server(folder) as url:
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
