"""Inputs that nobody thought of: request models, bytes on a socket, and the published OpenAPI document."""

import asyncio
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from schemathesis import checks

from loop.gateway import AccessTokens, Gateway, GatewayConfig, loop_factory
from loop.gateway.answers import ErrorAnswer
from loop.gateway.errors import ApiError, from_validation
from loop.gateway.openapi import document
from loop.gateway.schema import ChatRequest, CompletionRequest
from loop.gateway.translate import Terms, job_of
from tests.examples import up_to
from tests.loop.gateway.backend import TinyBackend, expected
from tests.loop.gateway.harness import Served, served

TOKEN = "a-token-of-a-customer"  # noqa: S105  # of this test
NAMES = [*CompletionRequest.model_fields, *ChatRequest.model_fields, "role", "content", "text", "type", "x"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 20)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["tiny", "text", "user", "hi", "none", "auto"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": st.text()} | {}),
    min_size=1,
    max_size=3,
)
BODIES = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6).flatmap(
    lambda some: st.fixed_dictionaries(
        {"model": st.just("tiny"), "prompt": st.text() | JSON, "messages": MESSAGES}
    ).map(lambda base: {**some, **base})
)


def _served_or_refused(model: type[CompletionRequest | ChatRequest], body: dict[str, Any]) -> None:
    """A body becomes a job within all limits, or a 4xx with a message; nothing else."""
    backend, config = TinyBackend(), GatewayConfig(max_choices=8)
    try:
        asked = model.model_validate_json(json.dumps(body))
    except ValidationError as error:
        refused = from_validation(error)
        assert 400 <= refused.status < 500
        ErrorAnswer.model_validate_json(refused.body())
        return
    try:
        job_of(asked, backend, config, Terms("id", 0, 1.0)).send(None)  # short texts: it waits for nothing
    except StopIteration as done:
        job = done.value
    except ApiError as error:
        assert 400 <= error.status < 500  # noqa: PT017  # one of two right outcomes
        return
    else:
        raise AssertionError("it waits")
    assert 1 <= len(job.choices) <= config.max_choices
    for choice in job.choices:
        sampling = choice.sampling
        assert 0 < len(choice.prompt_token_ids) + sampling.max_tokens <= backend.max_model_len
        assert max(choice.prompt_token_ids) < 257
        assert 0 <= sampling.temperature <= 2
        assert 0 < sampling.top_p <= 1
        assert sampling.top_k >= 0
        assert sampling.seed is None or 0 <= sampling.seed < 2**63
        assert all(sampling.stop)


@settings(max_examples=up_to(80), suppress_health_check=[HealthCheck.too_slow])
@given(BODIES)
def test_completion_bodies(body: dict[str, Any]) -> None:
    body = {
        name: value
        for name, value in body.items()
        if name in CompletionRequest.model_fields or len(body) % 3 == 0
    }
    _served_or_refused(CompletionRequest, body)


@settings(max_examples=up_to(80), suppress_health_check=[HealthCheck.too_slow])
@given(BODIES)
def test_chat_bodies(body: dict[str, Any]) -> None:
    body = {
        name: value for name, value in body.items() if name in ChatRequest.model_fields or len(body) % 3 == 0
    }
    _served_or_refused(ChatRequest, body)


@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_as_a_body(body: bytes) -> None:
    for model in (CompletionRequest, ChatRequest):
        try:
            model.model_validate_json(body)
        except ValidationError as error:
            assert from_validation(error).status == 400  # noqa: PT017  # one of two right outcomes


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 46\r\n\r\n"
WHOLE = HEAD + b'{"model": "tiny", "prompt": "hi", "stream": 1}'


@pytest.mark.slow
@settings(max_examples=5)
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.randoms(),
)
def test_spoilt_bytes_on_a_socket(changes: list[tuple[int, int]], rng: Any) -> None:
    @served(header_timeout_s=1.0, body_timeout_s=1.0, keep_alive_s=1.0)
    async def check(s: Served) -> None:
        async def one() -> None:
            spoilt = bytearray(WHOLE)
            for at, value in [*changes, (rng.randrange(len(WHOLE)), rng.randrange(256))]:
                spoilt[at] = value
            raw = await s.raw()
            await raw.send(bytes(spoilt))
            if rng.random() < 0.5:
                raw.abort()
            else:
                assert (await raw.rest()).startswith(b"HTTP/1.1 ")

        await asyncio.gather(*(one() for _ in range(20)))
        assert (await s.complete(max_tokens=3)).json()["choices"][0]["text"] == expected("hi", 3)

    check()


def test_document_is_whole() -> None:
    for secured in (False, True):
        text = json.dumps(document(secured=secured))
        schemas = document(secured=secured)["components"]["schemas"]
        for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
            assert name in schemas
        assert ("bearer" in text) is secured


@contextmanager
def _in_a_thread(backend: TinyBackend, config: GatewayConfig) -> Iterator[str]:
    """A gateway in a thread of its own: schemathesis is not asynchronous."""
    ready = threading.Event()
    found: dict[str, Any] = {}

    async def main() -> None:
        gateway = Gateway(backend, config)
        await gateway.start()
        found.update(gateway=gateway, loop=asyncio.get_running_loop())
        ready.set()
        await gateway.serve_forever()

    def work() -> None:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(main())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(120)
        yield found["gateway"].url
    finally:
        found["loop"].call_soon_threadsafe(found["gateway"].request_stop)
        thread.join(120)
        assert not thread.is_alive()


def _could_be_a_name(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 512


def _seconds(value: Any) -> float:
    """Of a header; infinity for what is none, or no valid one: that is to be refused."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return math.inf
    return seconds if seconds > 0 else math.inf


@pytest.mark.slow
@pytest.mark.parametrize("method_and_path", ["POST /v1/completions", "POST /v1/chat/completions", "GET"])
def test_published_openapi(method_and_path: str) -> None:
    """Every answer is as the document says, whatever is sent; what the document forbids is refused."""
    backend = TinyBackend(max_model_len=1 << 40)
    backend_tokens = AccessTokens({TOKEN: 0})
    # What the document allows may still not fit the context or the vocabulary: a 400 to a valid body is no defect.
    excluded = [checks.positive_data_acceptance]
    with _in_a_thread(
        backend, GatewayConfig(port=0, tokens=backend_tokens, max_output_tokens=64, max_in_flight=9999)
    ) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        method, _, path = method_and_path.partition(" ")
        chosen = schema.include(method=method, path=path) if path else schema.include(method=method)
        statuses: dict[int, int] = {}
        for found in chosen.get_all_operations():
            operation = found.ok()

            @settings(max_examples=up_to(60), deadline=None, suppress_health_check=list(HealthCheck))
            @given(
                case=st.one_of(
                    operation.as_strategy(),
                    operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE),
                )
            )
            def check(case: Any) -> None:
                if isinstance(case.body, dict) and _could_be_a_name(case.body.get("model")):
                    case.body["model"] = "tiny"
                if (
                    _seconds(case.headers.get("x-request-timeout-s")) < 30
                ):  # else a 504 would be the right answer
                    case.headers["x-request-timeout-s"] = "30"
                response = case.call(headers={"authorization": f"Bearer {TOKEN}"})
                statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
                case.validate_response(
                    response, excluded_checks=excluded, headers={"authorization": f"Bearer {TOKEN}"}
                )

            check()
        assert statuses.get(200), statuses
    assert not backend.open
