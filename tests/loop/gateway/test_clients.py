"""Clients that we did not write: the openai package, curl, a load generator."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import openai
import pytest

from loop.contracts.engine import DeadlineError
from loop.gateway import AccessTokens
from tests.loop.gateway.backend import TinyBackend, expected
from tests.loop.gateway.harness import Served, served

TOKEN = "a-token-of-a-customer"  # noqa: S105  # of this test
CHAT_PROMPT = "<user>hi<assistant>"
MESSAGES = [{"role": "user", "content": "hi"}]


def async_client(s: Served, key: str = TOKEN) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{s.gateway.url}/v1", api_key=key, max_retries=0)


@served(tokens=AccessTokens({TOKEN: 1}))
async def test_openai_async(s: Served) -> None:
    async with async_client(s) as client:
        whole = await client.completions.create(
            model="tiny", prompt="hi", max_tokens=5, n=2, seed=3, logprobs=1
        )
        assert [choice.text for choice in whole.choices] == [expected("hi", 5, 3), expected("hi", 5, 4)]
        assert whole.usage is not None
        assert whole.usage.total_tokens == 12
        chat = await client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_completion_tokens=4,
            logprobs=True,
            top_logprobs=2,  # type: ignore[arg-type]
        )
        assert chat.choices[0].message.content == expected(CHAT_PROMPT, 4)
        assert chat.choices[0].logprobs is not None
        models = [model.id async for model in client.models.list()]
        assert models == ["tiny", "other", "dir/with:colon"]
        assert (await client.models.retrieve("tiny")).owned_by == "autopoiesis"


@served(tokens=AccessTokens({TOKEN: 1}))
async def test_openai_async_streams(s: Served) -> None:
    async with async_client(s) as client:
        stream = await client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},  # type: ignore[arg-type]
        )
        text, usage = "", None
        async for chunk in stream:
            usage = chunk.usage or usage
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        assert text == expected(CHAT_PROMPT, 6)
        assert usage is not None
        assert usage.completion_tokens == 6
        extended = await client.completions.create(
            model="tiny",
            prompt=[104, 105],
            max_tokens=3,
            stream=True,
            extra_body={"top_k": 5, "ignore_eos": True},
        )
        assert "".join([chunk.choices[0].text async for chunk in extended]) == expected("hi", 3)


@served(tokens=AccessTokens({TOKEN: 1}))
async def test_openai_sync(s: Served) -> None:
    def work() -> None:
        with openai.OpenAI(base_url=f"{s.gateway.url}/v1", api_key=TOKEN, max_retries=0) as client:
            whole = client.completions.create(model="tiny", prompt=["hi", "yo"], max_tokens=4, stop=["q"])
            assert len(whole.choices) == 2
            streamed = client.completions.create(model="tiny", prompt="hi", max_tokens=9, stream=True)
            assert "".join(chunk.choices[0].text for chunk in streamed) == expected("hi", 9)

    await asyncio.to_thread(work)


@served(tokens=AccessTokens({TOKEN: 1}))
async def test_openai_errors(s: Served) -> None:
    async with async_client(s, "wrong") as stranger:
        with pytest.raises(openai.AuthenticationError) as wrong:
            await stranger.models.list()
        assert wrong.value.code == "invalid_api_key"
    async with async_client(s) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.completions.create(model="none", prompt="hi")
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as bad:
            await client.completions.create(model="tiny", prompt="hi", frequency_penalty=1)
        assert bad.value.param == "frequency_penalty"
        s.backend.failure, s.backend.fail_after = DeadlineError("late"), 2
        stream = await client.completions.create(model="tiny", prompt="hi", stream=True)
        with pytest.raises(openai.APIError, match="late") as late:
            async for _ in stream:
                pass
        assert late.value.code == "deadline_exceeded"


@served(lambda: TinyBackend(gate=asyncio.Event(), gate_after=2))
async def test_openai_client_that_closes_a_stream(s: Served) -> None:
    async with async_client(s) as client:
        stream = await client.completions.create(model="tiny", prompt="hi", stream=True)
        async for _ in stream:
            break
        await stream.close()
        await s.backend.wait_open(0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@served(tokens=AccessTokens({TOKEN: 0}))
async def test_curl(s: Served) -> None:
    async def curl(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "-H", f"Authorization: Bearer {TOKEN}", *arguments, stdout=subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out.decode()

    url, kind = f"{s.gateway.url}/v1/completions", "Content-Type: application/json"
    whole = json.loads(
        await curl(url, "-H", kind, "-d", '{"model": "tiny", "prompt": "hi", "max_tokens": 3}')
    )
    assert whole["choices"][0]["text"] == expected("hi", 3)
    streamed = await curl("-N", url, "-H", kind, "-d", '{"model": "tiny", "prompt": "hi", "stream": true}')
    assert streamed.endswith("data: [DONE]\n\n")


@pytest.mark.slow
@served(lambda: TinyBackend(token_s=0.002))
async def test_a_burst_of_streams(s: Served) -> None:
    answers = await asyncio.gather(
        *(s.complete(prompt=f"p{i}", max_tokens=9, stream=True) for i in range(100))
    )
    for i, answer in enumerate(answers):
        text = "".join(
            json.loads(line.removeprefix("data: "))["choices"][0]["text"]
            for line in answer.text.splitlines()
            if line.startswith("data: {")
        )
        assert text == expected(f"p{i}", 9)


LLMETER_PYTHON = os.environ.get("LLMETER_PYTHON") or (sys.executable if find_spec("llmeter") else None)
LLMETER = """
import asyncio, json, sys
from llmeter.endpoints.openai import OpenAICompletionEndpoint, OpenAICompletionStreamEndpoint
from llmeter.runner import Runner

for kind in (OpenAICompletionStreamEndpoint, OpenAICompletionEndpoint):
    endpoint = kind("tiny", base_url=sys.argv[1], api_key=sys.argv[2])
    payload = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    run = asyncio.run(Runner(endpoint, timeout=60).run(payload=payload, n_requests=10, clients=8))
    texts = sorted({response.response_text for response in run.responses})
    print(json.dumps([run.stats["total_requests"], run.stats["failed_requests"], texts]))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    LLMETER_PYTHON is None, reason="llmeter is not installed: name a python that has it in $LLMETER_PYTHON"
)
@served(lambda: TinyBackend(token_s=0.002), within_s=150.0, tokens=AccessTokens({TOKEN: 0}))
async def test_load_generator(s: Served) -> None:
    """LLMeter (AWS Labs), a load generator from the package index, streaming and not."""
    process = await asyncio.create_subprocess_exec(
        str(LLMETER_PYTHON), "-c", LLMETER, f"{s.gateway.url}/v1", TOKEN, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    reports = [json.loads(line) for line in out.decode().splitlines() if line.startswith("[")]
    assert reports == [[80, 0, [expected(CHAT_PROMPT, 8)]]] * 2
    assert len(s.backend.seen) == 160
