"""What is wrong with a request, and what fails behind it: status, type, code, param."""

import json

import pytest

from loop.contracts.engine import (
    DeadlineError,
    EngineBusyError,
    EngineCrashedError,
    EngineError,
    InvalidRequestError,
    RejectedError,
    ServeError,
    UnavailableError,
    UnknownModelError,
)
from loop.gateway.answers import ErrorAnswer
from tests.loop.gateway.backend import TinyBackend, expected
from tests.loop.gateway.harness import JSON_HEADERS, Served, served

GOOD = {"model": "tiny", "prompt": "hi"}


BAD_COMPLETIONS: list[tuple[dict[str, object], str, str]] = [
    ({"model": None}, "model", "invalid_type"),
    ({"prompt": None}, "prompt", "invalid_type"),
    ({"prompt": 5}, "prompt", "invalid_type"),
    ({"prompt": ""}, "prompt", "invalid_value"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": ["a", ""]}, "prompt[1]", "invalid_value"),
    ({"prompt": [1, "a"]}, "prompt[1]", "invalid_type"),
    ({"prompt": [[1], ["a"]]}, "prompt[1][0]", "invalid_type"),
    ({"prompt": [1, -1]}, "prompt[1]", "invalid_value"),
    ({"prompt": [1, 300]}, "prompt", "invalid_value"),
    ({"prompt": [True]}, "prompt[0]", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
    ({"max_tokens": 2.5}, "max_tokens", "invalid_type"),
    ({"max_tokens": 10**30}, "max_tokens", "invalid_value"),
    ({"max_tokens": 5000}, "max_tokens", "context_length_exceeded"),
    ({"prompt": "x" * 5000}, "prompt", "context_length_exceeded"),
    ({"prompt": "x" * 50_000}, "prompt", "context_length_exceeded"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": ["a", 1]}, "stop[1]", "invalid_type"),
    ({"stop": ["a"] * 17}, "stop", "invalid_value"),
    ({"n": 129}, "n", "invalid_value"),
    ({"n": 100, "prompt": ["a", "b"]}, "prompt", "invalid_value"),
    ({"stream": 1}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"stream_options": {"a": 1}}, "stream_options.a", "unknown_parameter"),
    ({"logprobs": 21}, "logprobs", "invalid_value"),
    ({"frobnicate": 1}, "frobnicate", "unknown_parameter"),
    ({"best_of": 3}, "best_of", "unsupported_value"),
    ({"echo": True, "logprobs": 1}, "echo", "unsupported_value"),
    ({"suffix": "x"}, "suffix", "unsupported_parameter"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
]


@served()
async def test_bad_completions(s: Served) -> None:
    for change, param, code in BAD_COMPLETIONS:
        response = await s.complete(**change)
        error = ErrorAnswer.model_validate_json(response.content).error
        assert response.status_code == 400, change
        assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert s.backend.seen == []


BAD_CHATS: list[tuple[dict[str, object], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": "refuse me"}]}, "messages"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"max_completion_tokens": 9999}, "max_completion_tokens"),
]


@served()
async def test_bad_chats(s: Served) -> None:
    for change, param in BAD_CHATS:
        response = await s.chat(**change)
        assert response.status_code == 400, change
        assert response.json()["error"]["param"] == param


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b'{"model": "tiny", "prompt": "\xff"}',
    b'{"model": "tiny", "prompt": "\\ud800"}',
    b'{"model": "tiny", "prompt": "hi", "temperature": NaN}',
    b'{"model": "tiny", "prompt": "hi", "temperature": Infinity}',
    b'{"model": "tiny", "prompt": "hi", "temperature": 1e999}',
    b'{"model": "tiny", "prompt": "hi", "max_tokens": ' + b"9" * 100_000 + b"}",
    b'{"model": "tiny", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"model": "tiny", "x": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    b'{"model": "tiny", "prompt": [' + b"1," * 300_000 + b'"a"]}',
    b"\x00" * 1000,
    b"\xef\xbb\xbf{}",
]


@served()
async def test_malformed_bodies(s: Served) -> None:
    for body in MALFORMED:
        for path in ("/v1/completions", "/v1/chat/completions"):
            response = await s.http.post(path, content=body, headers=JSON_HEADERS)
            error = ErrorAnswer.model_validate_json(response.content).error
            assert response.status_code == 400, body[:80]
            assert len(error.message) < 400  # what was sent is not sent back
        assert (await s.complete()).status_code == 200


@served()
async def test_unknown_model(s: Served) -> None:
    for name in ("nope", "tiny:", ":tiny", "nope:poet", "x" * 500):
        response = await s.complete(model=name)
        assert response.status_code == 404
        error = response.json()["error"]
        assert (error["param"], error["code"]) == ("model", "model_not_found")


@served()
async def test_routes_that_are_not_there(s: Served) -> None:
    assert (await s.http.get("/nope")).status_code == 404
    assert (await s.http.get("/v1/models/")).status_code == 404
    wrong = await s.http.get("/v1/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    ErrorAnswer.model_validate_json(wrong.content)
    assert (await s.http.head("/health")).status_code == 200
    odd = await s.http.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert odd.status_code == 415


FAILURES = [
    (UnknownModelError("gone"), 404, "model_not_found"),
    (InvalidRequestError("too long"), 400, "invalid_value"),
    (RejectedError("full", retry_after_s=2.5), 429, "rate_limit_exceeded"),
    (EngineBusyError("full"), 429, "rate_limit_exceeded"),
    (UnavailableError("none"), 503, "unavailable"),
    (DeadlineError("late"), 504, "deadline_exceeded"),
    (EngineError("odd"), 500, "engine_error"),
    (EngineCrashedError("dead"), 500, "engine_error"),
    (ServeError("odd"), 500, "engine_error"),
    (RuntimeError("secret detail"), 500, None),
]


@pytest.mark.parametrize(("failure", "status", "code"), FAILURES, ids=lambda v: type(v).__name__)
def test_failures_before_the_first_token(failure: Exception, status: int, code: str | None) -> None:
    @served(lambda: TinyBackend(failure=failure))
    async def check(s: Served) -> None:
        for n in (1, 2):
            for stream in (False, True):
                response = await s.complete(stream=stream, n=n)
                error = ErrorAnswer.model_validate_json(response.content).error
                assert (response.status_code, error.code) == (status, code)
                assert "secret" not in response.text
                if status == 429:
                    assert response.headers["retry-after"] in {"1", "3"}
        s.backend.failure = None
        assert (await s.complete()).status_code == 200

    check()


@pytest.mark.parametrize("n", [1, 2])
def test_failure_in_the_midst_of_a_stream(n: int) -> None:
    @served(lambda: TinyBackend(failure=DeadlineError("late"), fail_after=3))
    async def check(s: Served) -> None:
        raw = await s.raw()
        await raw.post({**GOOD, "stream": True, "n": n})
        status, headers = await raw.head()
        body = (await raw.rest()).decode()  # the connection is closed after the error
        assert status == 200
        assert "connection" not in headers
        blocks = [line for line in body.split("\r\n") if line.startswith("data: ")]
        last = json.loads(blocks[-1].strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"] == {
            "message": "late",
            "type": "server_error",
            "param": None,
            "code": "deadline_exceeded",
        }
        assert "[DONE]" not in body
        assert body.endswith("0\r\n\r\n")
        assert expected("hi", 1) in body

    check()


@served(lambda: TinyBackend(failure=UnavailableError("gone"), fail_after=3))
async def test_failure_in_the_midst_of_a_whole_answer(s: Served) -> None:
    response = await s.complete()
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
