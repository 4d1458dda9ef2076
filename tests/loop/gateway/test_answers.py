"""Answers: forms, counts, choices, prompts of all kinds; each checked against the published models."""

import pytest

from loop.gateway.answers import (
    ChatCompletion,
    ChatEvent,
    Completion,
    CompletionEvent,
    Health,
    Model,
    ModelList,
)
from tests.loop.gateway.backend import ByteTokenizer, TinyBackend, expected
from tests.loop.gateway.harness import Served, events, served

CHAT_PROMPT = "<user>hi<assistant>"


@served()
async def test_completion(s: Served) -> None:
    response = await s.complete(max_tokens=7)
    answer = Completion.model_validate_json(response.content)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert answer.choices[0].text == expected("hi", 7)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.model_dump() == {
        "prompt_tokens": 2,
        "completion_tokens": 7,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert answer.model == "tiny"
    assert answer.id.startswith("cmpl-")


@served()
async def test_completion_defaults_to_16_tokens(s: Served) -> None:
    response = await s.complete()
    assert response.json()["usage"]["completion_tokens"] == 16
    sampling = s.backend.seen[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert (sampling.seed, sampling.stop, sampling.ignore_eos, sampling.logprobs) == (None, (), False, None)


@served()
async def test_sampling_reaches_the_backend(s: Served) -> None:
    await s.complete(
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        seed=-1,
        stop=["x", "yy"],
        ignore_eos=True,
        logprobs=3,
        max_tokens=5,
    )
    sampling = s.backend.seen[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.5, 0.25, 7, 5)
    assert (sampling.seed, sampling.stop, sampling.ignore_eos, sampling.logprobs) == (
        2**63 - 1,
        ("x", "yy"),
        True,
        3,
    )


@served()
async def test_top_k_minus_one_is_all(s: Served) -> None:
    await s.complete(top_k=-1)
    assert s.backend.seen[0].sampling.top_k == 0


@served()
async def test_chat(s: Served) -> None:
    response = await s.chat(max_completion_tokens=5, max_tokens=9)
    answer = ChatCompletion.model_validate_json(response.content)
    assert answer.choices[0].message.content == expected(CHAT_PROMPT, 5)
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage.prompt_tokens == len(CHAT_PROMPT)


@served(lambda: TinyBackend(max_model_len=64))
async def test_chat_goes_on_to_the_end_of_the_context(s: Served) -> None:
    response = await s.chat()
    assert response.json()["usage"]["total_tokens"] == 64


@served()
async def test_chat_parts_and_roles(s: Served) -> None:
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]},
        {"role": "assistant", "content": "ok", "refusal": None, "tool_calls": None, "name": "a"},
    ]
    response = await s.http.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": messages, "max_tokens": 1}
    )
    assert response.status_code == 200, response.text
    prompt = ByteTokenizer().decode(s.backend.seen[0].prompt_token_ids)
    assert prompt == "<system>be kind<user>hello<assistant>ok<assistant>"


@served()
async def test_choices_of_a_seeded_request_differ_and_repeat(s: Served) -> None:
    first, again = [(await s.complete(n=3, seed=2**63 - 1, max_tokens=6)).json() for _ in range(2)]
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [expected("hi", 6, seed) for seed in (2**63 - 1, 0, 1)]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert texts == [choice["text"] for choice in again["choices"]]
    assert first["usage"]["prompt_tokens"] == 2
    assert first["usage"]["completion_tokens"] == 18


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([97, 98], ["ab"]),
        ([[97, 98], [99]], ["ab", "c"]),
        ("å日", ["å日"]),
    ],
)
def test_forms_of_prompts(prompt: object, texts: list[str]) -> None:
    @served()
    async def check(s: Served) -> None:
        for stream in (False, True):
            response = await s.complete(prompt=prompt, n=2, max_tokens=4, stream=stream)
            wanted = [expected(text, 4) for text in texts for _ in range(2)]
            if not stream:
                assert [choice["text"] for choice in response.json()["choices"]] == wanted
                assert response.json()["usage"]["prompt_tokens"] == sum(len(text.encode()) for text in texts)
                continue
            got = [""] * len(wanted)
            for event in events(response.text):
                for choice in event["choices"]:
                    got[choice["index"]] += choice["text"]
            assert got == wanted

    check()


@served()
async def test_stop_strings(s: Served) -> None:
    whole = expected("hi", 16)
    stop = whole[5:7]
    response = await s.complete(stop=stop)
    choice = response.json()["choices"][0]
    assert choice["text"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"


@served()
async def test_echo(s: Served) -> None:
    for prompt in ("hé", list("hé".encode())):
        whole = (await s.complete(prompt=prompt, echo=True, max_tokens=3)).json()
        assert whole["choices"][0]["text"] == "hé" + expected("hé", 3)
        streamed = events((await s.complete(prompt=prompt, echo=True, max_tokens=3, stream=True)).text)
        assert "".join(event["choices"][0]["text"] for event in streamed) == "hé" + expected("hé", 3)


@served()
async def test_completion_logprobs(s: Served) -> None:
    whole = Completion.model_validate_json((await s.complete(max_tokens=3, logprobs=2)).content)
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    text = expected("hi", 3)
    assert logprobs.tokens == list(text)
    assert logprobs.token_logprobs == [-0.5] * 3
    assert logprobs.top_logprobs[0] == {text[0]: -0.5, chr(ord(text[0]) + 1): -1.5}
    assert logprobs.text_offset == [0, 1, 2]
    streamed = [
        CompletionEvent.model_validate(event).choices[0].logprobs
        for event in events((await s.complete(max_tokens=3, logprobs=2, stream=True)).text)
    ]
    assert [each.text_offset for each in streamed if each] == [[0], [1], [2]]
    assert [each.tokens[0] for each in streamed if each] == list(text)


@served()
async def test_chat_logprobs(s: Served) -> None:
    whole = ChatCompletion.model_validate_json(
        (await s.chat(max_tokens=2, logprobs=True, top_logprobs=1)).content
    )
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    text = expected(CHAT_PROMPT, 2)
    assert [each.token for each in logprobs.content] == list(text)
    assert logprobs.content[0].bytes == [ord(text[0])]
    assert logprobs.content[0].top_logprobs[0].token == text[0]
    bare = (
        ChatCompletion.model_validate_json((await s.chat(max_tokens=2, logprobs=True)).content)
        .choices[0]
        .logprobs
    )
    assert bare is not None
    assert bare.content[0].top_logprobs == []


@served(lambda: TinyBackend(per_output=3))
async def test_streamed_completion(s: Served) -> None:
    response = await s.complete(max_tokens=8, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    found = [CompletionEvent.model_validate(event) for event in events(response.text)]
    assert [event.choices[0].text for event in found] == [expected("hi", 8)[i : i + 3] for i in (0, 3, 6)]
    assert [event.choices[0].finish_reason for event in found] == [None, None, "length"]
    assert len({event.id for event in found}) == 1
    assert "usage" not in response.text


@served()
async def test_streamed_usage(s: Served) -> None:
    response = await s.complete(max_tokens=2, stream=True, stream_options={"include_usage": True}, n=2)
    *before, last = events(response.text)
    assert all(event["usage"] is None for event in before)
    assert last["choices"] == []
    assert last["usage"] == (await s.complete(max_tokens=2, n=2)).json()["usage"]


@served()
async def test_streamed_chat(s: Served) -> None:
    response = await s.chat(max_tokens=3, stream=True, n=2, stream_options={"include_usage": True})
    found = [ChatEvent.model_validate(event) for event in events(response.text)]
    assert found[-1].usage is not None
    for index in (0, 1):
        deltas = [each.delta for event in found for each in event.choices if each.index == index]
        assert deltas[0].role == "assistant"
        assert "".join(delta.content or "" for delta in deltas) == expected(CHAT_PROMPT, 3)
        reasons = [each.finish_reason for event in found for each in event.choices if each.index == index]
        assert reasons[-1] == "length"
        assert set(reasons[:-1]) == {None}


@served()
async def test_adapters(s: Served) -> None:
    response = await s.complete(model="tiny:poet")
    assert response.json()["model"] == "tiny:poet"
    assert (s.backend.seen[0].model, s.backend.seen[0].adapter) == ("tiny", "poet")
    listed = await s.complete(model="dir/with:colon", max_tokens=1)
    assert listed.status_code == 200
    assert s.backend.seen[1].adapter is None
    unknown = await s.complete(model="tiny:painter")
    assert unknown.status_code == 400


@served()
async def test_models(s: Served) -> None:
    listed = ModelList.model_validate_json((await s.http.get("/v1/models")).content)
    assert [model.id for model in listed.data] == ["tiny", "other", "dir/with:colon"]
    one = Model.model_validate_json((await s.http.get("/v1/models/dir/with:colon")).content)
    assert one.max_model_len == 64
    missing = await s.http.get("/v1/models/none")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


@served(lambda: TinyBackend(ready=False))
async def test_health(s: Served) -> None:
    for path in ("/health", "/health/live"):
        response = await s.http.get(path)
        assert response.status_code == 200
        Health.model_validate_json(response.content)
    assert (await s.http.get("/health/ready")).status_code == 503
    s.backend.ready = True
    assert (await s.http.get("/health/ready")).json()["models"] == ["tiny", "dir/with:colon"]
