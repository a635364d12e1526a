"""Frameworks that people put between themselves and a server, each set up as its own documentation says.

    pip install --requirement frameworks_requirements.txt
    python frameworks.py PATH/TO/passerelle

Starts the binary on a free loopback port, with the bundled demo model and an encoder.
"""

import asyncio
import os
import pathlib
import sys
import tempfile
import unittest

# Before it is imported: else it asks the internet for prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import agents
import instructor
import litellm
import openai
import pydantic
from agent_framework import Agent as MicrosoftAgent
from agent_framework.openai import OpenAIChatClient, OpenAIChatCompletionClient
from huggingface_hub import InferenceClient
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from llama_index.llms.openai_like import OpenAILike
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from served import server

ENCODER = pathlib.Path(__file__).parents[3] / "models/tests/fixtures/encoders/bert"
SUM, WEATHER = "What is 12 + 7?", "What is the weather in Paris?"
ANSWER = "19"
GREEDY = {"temperature": 0, "max_tokens": 64}

URL = None


class Sum(pydantic.BaseModel):
    result: int = pydantic.Field(ge=0, le=999)
    is_even: bool


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"sunny in {city}"


class LangChain(unittest.TestCase):
    def chat(self, **options):
        return ChatOpenAI(model="demo", base_url=URL, **GREEDY, **options)

    def test_a_message_whole_and_streamed(self):
        self.assertIn(ANSWER, self.chat().invoke(SUM).content)
        chunks = list(self.chat(stream_usage=True).stream(SUM))
        self.assertIn(ANSWER, "".join(chunk.content for chunk in chunks))
        self.assertGreater(sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata), 0)

    def test_responses(self):
        self.assertIn(ANSWER, self.chat(use_responses_api=True).invoke(SUM).text)

    def test_an_object_by_a_schema_and_by_a_tool(self):
        for method in ["json_schema", "function_calling"]:
            with self.subTest(method):
                self.assertIsInstance(self.chat().with_structured_output(Sum, method=method).invoke(SUM), Sum)

    def test_a_tool_is_called(self):
        bound = self.chat().bind_tools([tool(get_weather)], tool_choice="get_weather")
        self.assertEqual([call["name"] for call in bound.invoke(WEATHER).tool_calls], ["get_weather"])

    def test_completions(self):
        self.assertTrue(OpenAI(model="demo", base_url=URL, temperature=0, max_tokens=16).invoke("Once upon"))

    def test_embeddings(self):
        embedder = OpenAIEmbeddings(model="bert", base_url=URL, check_embedding_ctx_length=False)
        first, second = embedder.embed_documents(["a", "b"])
        self.assertGreater(len(first), 0)
        self.assertEqual(len(first), len(second))
        self.assertNotEqual(first, second)


class Instructor(unittest.TestCase):
    def test_an_object_in_each_mode_that_is_held_to_its_form(self):
        modes = instructor.Mode
        for mode in [modes.TOOLS, modes.TOOLS_STRICT, modes.JSON_SCHEMA, modes.RESPONSES_TOOLS]:
            with self.subTest(mode):
                client = instructor.from_openai(openai.OpenAI(base_url=URL), mode=mode)
                messages = [{"role": "user", "content": SUM}]
                found = client.create(model="demo", response_model=Sum, messages=messages, **GREEDY)
                self.assertIsInstance(found, Sum)


class LiteLlm(unittest.TestCase):
    def ask(self, provider="openai", **options):
        messages = [{"role": "user", "content": SUM}]
        return litellm.completion(
            model=f"{provider}/demo", api_base=URL, api_key="unused", messages=messages, **GREEDY, **options
        )

    def test_as_a_server_of_openais_kind_and_of_vllms(self):
        self.assertIn(ANSWER, self.ask().choices[0].message.content)
        asked = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
        self.assertIn(ANSWER, self.ask("hosted_vllm", **asked).choices[0].message.content)

    def test_streamed(self):
        chunks = self.ask(stream=True, stream_options={"include_usage": True})
        choices = [choice for chunk in chunks for choice in chunk.choices]
        self.assertIn(ANSWER, "".join(choice.delta.content or "" for choice in choices))

    def test_documents_are_ranked_as_vllm_cohere_and_jina_do(self):
        for provider in ["hosted_vllm", "cohere", "jina_ai"]:
            with self.subTest(provider):
                root = URL.removesuffix("/v1")
                asked = {"query": "a", "documents": ["a", "b"], "top_n": 1}
                ranked = litellm.rerank(model=f"{provider}/bert", api_base=root, api_key="unused", **asked)
                self.assertEqual([result["index"] for result in ranked.results], [0])

    def test_a_message_of_anthropics_kind(self):
        asked = {"messages": [{"role": "user", "content": SUM}], "max_tokens": 64, "temperature": 0}
        call = litellm.anthropic.messages.acreate(model="openai/demo", api_base=URL, api_key="unused", **asked)
        self.assertIn(ANSWER, asyncio.run(call)["content"][0]["text"])


class HuggingFace(unittest.TestCase):
    def ask(self, **options):
        client = InferenceClient(base_url=URL, api_key="unused")
        return client.chat_completion([{"role": "user", "content": SUM}], model="demo", **GREEDY, **options)

    def test_whole_and_streamed(self):
        self.assertIn(ANSWER, self.ask().choices[0].message.content)
        choices = [choice for chunk in self.ask(stream=True) for choice in chunk.choices]
        self.assertIn(ANSWER, "".join(choice.delta.content or "" for choice in choices))

    def test_an_object_by_a_schema(self):
        named = {"name": "Sum", "schema": Sum.model_json_schema(), "strict": True}
        answer = self.ask(response_format={"type": "json_schema", "json_schema": named})
        Sum.model_validate_json(answer.choices[0].message.content)

    def test_a_tool_is_called_and_its_answer_sent_back(self):
        parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        options = {"tools": [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]}
        client = InferenceClient(base_url=URL, api_key="unused")
        asked = [{"role": "user", "content": WEATHER}]
        said = client.chat_completion(asked, model="demo", tool_choice="required", **GREEDY, **options).choices[0].message
        results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in said.tool_calls]
        told = client.chat_completion([*asked, said, *results], model="demo", **GREEDY, **options)
        self.assertTrue(told.choices[0].message.content)


class MicrosoftAgents(unittest.IsolatedAsyncioTestCase):
    async def test_chat_and_responses(self):
        for kind in [OpenAIChatCompletionClient, OpenAIChatClient]:
            with self.subTest(kind):
                client = kind(model="demo", base_url=URL, api_key="unused")
                agent = MicrosoftAgent(client=client, default_options=GREEDY)
                self.assertIn(ANSWER, (await agent.run(SUM)).text)
                self.assertIn(ANSWER, "".join([update.text async for update in agent.run(SUM, stream=True)]))
                # Its way with a server that stores nothing.
                options = {**GREEDY, "store": False}
                caller = MicrosoftAgent(client=client, tools=[get_weather], default_options=options)
                self.assertTrue((await caller.run(WEATHER)).text)


class PydanticAi(unittest.TestCase):
    def agent(self, output):
        model = OpenAIChatModel("demo", provider=OpenAIProvider(base_url=URL, api_key="unused"))
        return Agent(model, output_type=output, model_settings=GREEDY)

    def test_a_text_and_an_object(self):
        self.assertIn(ANSWER, self.agent(str).run_sync(SUM).output)
        self.assertIsInstance(self.agent(Sum).run_sync(SUM).output, Sum)


class OpenAiAgents(unittest.TestCase):
    def agent(self, kind, **options):
        settings = agents.ModelSettings(**GREEDY)
        return agents.Agent(name="a", model=kind("demo", openai.AsyncOpenAI(base_url=URL)), model_settings=settings, **options)

    def test_chat_and_responses(self):
        agents.set_tracing_disabled(True)
        for kind in [agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel]:
            with self.subTest(kind):
                self.assertIn(ANSWER, agents.Runner.run_sync(self.agent(kind), SUM).final_output)
                tools = [agents.function_tool(get_weather)]
                self.assertTrue(agents.Runner.run_sync(self.agent(kind, tools=tools), WEATHER).final_output)


class OpenAiAgentsStreamed(unittest.IsolatedAsyncioTestCase):
    async def test_responses(self):
        agents.set_tracing_disabled(True)
        agent = OpenAiAgents().agent(agents.OpenAIResponsesModel)
        run = agents.Runner.run_streamed(agent, SUM)
        kinds = {event.type async for event in run.stream_events()}
        self.assertIn("raw_response_event", kinds)
        self.assertIn(ANSWER, run.final_output)


class LlamaIndex(unittest.TestCase):
    def test_whole_and_streamed(self):
        model = OpenAILike(model="demo", api_base=URL, api_key="unused", is_chat_model=True, **GREEDY)
        self.assertIn(ANSWER, model.complete(SUM).text)
        self.assertIn(ANSWER, "".join(part.delta or "" for part in model.stream_complete(SUM)))


if __name__ == "__main__":
    binary = str(pathlib.Path(sys.argv.pop(1)).resolve())
    # What some of them insist on, though the door is open.
    os.environ["OPENAI_API_KEY"] = "unused"
    with tempfile.TemporaryDirectory() as folder:
        with server(binary, folder, "--model", "demo", "--model", f"bert={ENCODER}") as url:
            URL = f"{url}/v1"
            unittest.main()
