"""Limits: sizes, times, tokens, requests in flight; each with its status, and the server serves on."""

import asyncio

import pytest

from tests.loop.gateway.backend import TinyBackend, expected
from tests.loop.gateway.harness import Served, served

GOOD = {"model": "tiny", "prompt": "hi"}


def gated(after: int = 0) -> TinyBackend:
    return TinyBackend(gate=asyncio.Event(), gate_after=after)


def open_gate(s: Served) -> None:
    assert s.backend.gate is not None
    s.backend.gate.set()


@served(max_body_bytes=200)
async def test_body_too_large_by_its_own_account(s: Served) -> None:
    raw = await s.raw()
    await raw.send(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
    await raw.send(b"content-length: 201\r\n\r\n")
    status, headers, body = await raw.answer()  # before the body is sent
    assert (status, headers["connection"]) == (413, "close")
    assert body["error"]["code"] == "request_too_large"
    await raw.send(b"x" * 201)
    assert await raw.rest() == b""
    assert (await s.complete()).status_code == 200


@served(max_body_bytes=200)
async def test_body_too_large_in_chunks(s: Served) -> None:
    raw = await s.raw()
    await raw.send(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
    await raw.send(b"transfer-encoding: chunked\r\n\r\n")
    for _ in range(3):
        await raw.send(b"64\r\n" + b"x" * 100 + b"\r\n")
    status, _, _ = await raw.answer()
    assert status == 413
    for _ in range(500):  # its sender may go on for a while, and can read the answer all the same
        await raw.send(b"64\r\n" + b"x" * 100 + b"\r\n")
    await raw.send(b"0\r\n\r\n")
    assert await raw.rest() == b""


@served(max_body_bytes=200)
async def test_body_at_the_limit_and_in_pieces(s: Served) -> None:
    body = b'{"model":"tiny","prompt":"hi","max_tokens":1}'
    body += b" " * (200 - len(body))
    raw = await s.raw()
    await raw.send(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
    await raw.send(b"expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n")
    assert (await raw.head())[0] == 100
    for i in range(0, 200, 50):
        await raw.send(b"32\r\n" + body[i : i + 50] + b"\r\n")
    await raw.send(b"0\r\n\r\n")
    status, _, answer = await raw.answer()
    assert (status, answer["choices"][0]["text"]) == (200, expected("hi", 1))


@served(body_timeout_s=0.2)
async def test_body_too_late(s: Served) -> None:
    raw = await s.raw()
    await raw.send(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
    await raw.send(b'content-length: 100\r\n\r\n{"model"')
    status, headers, body = await raw.answer()
    assert (status, headers["connection"], body["error"]["code"]) == (408, "close", "request_timeout")
    assert await raw.rest() == b""


@served(body_timeout_s=0.2)
async def test_body_that_nobody_waits_for_may_not_trickle_for_ever(s: Served) -> None:
    raw = await s.raw()
    await raw.send(b"POST /nope HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nx")
    assert (await raw.answer())[0] == 404
    assert await raw.rest() == b""


@served(header_timeout_s=0.2)
async def test_headers_too_late(s: Served) -> None:
    silent, slow = await s.raw(), await s.raw()
    await slow.send(b"POST /v1/completions HTTP/1.1\r\nhost:")
    for raw in (silent, slow):
        status, headers, _ = await raw.answer()
        assert (status, headers["connection"]) == (408, "close")
        assert await raw.rest() == b""
    assert s.gateway.connections.timed_out == 2


@pytest.mark.slow  # times that a machine busy elsewhere for a moment keeps to
@served(header_timeout_s=2.0, backend=lambda: gated(1))
async def test_header_time_is_not_the_time_of_an_answer(s: Served) -> None:
    raw = await s.raw()
    await raw.post({**GOOD, "stream": True, "max_tokens": 2})
    await raw.head()
    await raw.chunk()
    await raw.send(b"\r\nGET /hea")  # the beginning of another request, ahead of its time
    await asyncio.sleep(2.5)
    open_gate(s)
    assert b"[DONE]" in await raw.chunk()
    assert await raw.chunk() == b""
    await raw.send(b"lth HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await raw.answer())[0] == 200


@served(max_header_bytes=2000)
async def test_headers_too_large(s: Served) -> None:
    raw = await s.raw()
    await raw.send(b"GET /health HTTP/1.1\r\nhost: x\r\n")
    await raw.send(b"x-a: " + b"a" * 3000)
    status, _, _ = await raw.answer()
    assert status == 431
    raw = await s.raw()
    for _ in range(3):  # each request has its own measure
        await raw.send(b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 1500)
        await raw.send(b"\r\n\r\n")
        assert (await raw.answer())[0] == 200


@served()
async def test_what_is_no_http(s: Served) -> None:
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET\r\n\r\n",
        b"\r\n" * 40_000,
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
    ):
        raw = await s.raw()
        await raw.send(garbage)
        status, headers, _ = await raw.answer()
        assert status in {400, 431}
        assert headers["connection"] == "close"
    assert (await s.complete()).status_code == 200


@pytest.mark.slow
@served(keep_alive_s=1.0)
async def test_idle_connections_are_closed(s: Served) -> None:
    raw = await s.raw()
    await raw.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await raw.answer())[0] == 200
    assert await raw.rest() == b""


@served(max_prompt_tokens=10, max_output_tokens=5, max_choices=4)
async def test_tokens(s: Served) -> None:
    assert (await s.complete(prompt="x" * 10, max_tokens=5)).status_code == 200
    assert (await s.complete(prompt="x" * 11, max_tokens=5)).json()["error"][
        "code"
    ] == "context_length_exceeded"
    assert (await s.complete(max_tokens=6)).json()["error"]["param"] == "max_tokens"
    assert (await s.complete()).json()["usage"]["completion_tokens"] == 5
    assert (await s.complete(n=5)).json()["error"]["param"] == "n"
    assert (await s.complete(prompt=["a", "b"], n=3)).json()["error"]["param"] == "prompt"


@served(max_in_flight=2, backend=gated)
async def test_requests_in_flight(s: Served) -> None:
    first = [asyncio.create_task(s.complete(stream=stream)) for stream in (False, True)]
    await s.backend.wait_open(2)
    refused = await s.complete()
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert (await s.http.get("/health/ready")).status_code == 200
    open_gate(s)
    assert [(await each).status_code for each in first] == [200, 200]
    assert (await s.complete()).status_code == 200


@pytest.mark.slow
@served(backend=gated)
async def test_deadline_of_a_request(s: Served) -> None:
    headers = {"x-request-timeout-s": "0.1"}
    for body in ({}, {"stream": True}, {"n": 2, "stream": True}):
        response = await s.http.post("/v1/completions", json={**GOOD, **body}, headers=headers)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"
    await s.backend.wait_open(0)
    assert all(request.deadline_s is not None for request in s.backend.seen)


@pytest.mark.slow  # the first token has all the time it needs
@served(deadline_s=2.0, backend=lambda: gated(1))
async def test_deadline_by_default_in_the_midst_of_a_stream(s: Served) -> None:
    raw = await s.raw()
    await raw.post({**GOOD, "stream": True})
    assert (await raw.head())[0] == 200
    body = await raw.rest()
    assert b'"code":"deadline_exceeded"' in body
    assert b"[DONE]" not in body


@served(max_deadline_s=0.1, backend=gated)
async def test_deadlines_have_a_limit(s: Served) -> None:
    response = await s.http.post("/v1/completions", json=GOOD, headers={"x-request-timeout-s": "1e9"})
    assert response.status_code == 504


@served()
async def test_deadlines_that_make_no_sense(s: Served) -> None:
    for value in ("", "x", "nan", "0", "-1", "-inf"):
        response = await s.http.post("/v1/completions", json=GOOD, headers={"x-request-timeout-s": value})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "x-request-timeout-s"


@served()
async def test_request_ids(s: Served) -> None:
    for given, taken in (
        ("abc-1.2:3", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("a b", False),
        ("é", False),
    ):
        response = await s.http.get("/health", headers={"x-request-id": given.encode()})
        assert (response.headers["x-request-id"] == given) is taken
        assert len(response.headers["x-request-id"]) <= 128
    same = [
        await s.http.post("/v1/completions", json=GOOD, headers={"x-request-id": "same"}) for _ in range(2)
    ]
    assert same[0].json()["id"] != same[1].json()["id"]
    assert len({request.id for request in s.backend.seen}) == 2
