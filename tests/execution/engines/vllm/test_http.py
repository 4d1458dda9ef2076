"""The small HTTP client, against a server that says exactly these bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from execution.engines.vllm.http import Address, HttpError, ask, ask_json

T = TypeVar("T")


def served(said: bytes, use: Callable[[Address], Awaitable[T]]) -> tuple[T, bytes]:
    """(what `use` found, what the server heard) with a server that answers anything by `said`."""
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(said)
        await writer.drain()
        writer.close()

    async def run() -> T:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await asyncio.wait_for(use(Address("127.0.0.1", port, "key")), 10)

    return asyncio.run(run()), bytes(heard)


async def events(address: Address) -> list[str]:
    async with await ask(address, "POST", "/v1/completions", {"a": 1}) as answer:
        return [event async for event in answer.events()]


def chunked(*parts: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body


def test_an_answer_with_a_length() -> None:
    said = b'HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\nX: y\r\n\r\n{"a": [1]}'[:-1]
    (status, found), heard = served(said, lambda a: ask_json(a, "GET", "/x"))
    assert (status, found) == (404, None)  # cut off at nine bytes it is no JSON
    assert heard.startswith(b"GET /x HTTP/1.1\r\n")
    assert b"Authorization: Bearer key\r\n" in heard


def test_events_that_fall_into_pieces() -> None:
    found, heard = served(
        chunked(b"data: {", b'"a"}\n\nda', b"ta: b\n\n", b": ping\n\ndata: [DONE]\n\n"), events
    )
    assert found == ['{"a"}', "b", "[DONE]"]
    assert heard.startswith(b"POST /v1/completions")


def test_an_answer_until_the_connection_closes() -> None:
    (status, found), _ = served(b'HTTP/1.1 200 OK\r\n\r\n{"a": 1}', lambda a: ask_json(a, "GET", "/"))
    assert (status, found) == (200, {"a": 1})


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\nab",
    ],
)
def test_what_is_no_whole_answer_is_an_error(said: bytes) -> None:
    with pytest.raises(HttpError):
        served(said, lambda a: ask_json(a, "GET", "/"))


def test_nobody_there() -> None:
    with pytest.raises(HttpError, match="cannot be reached"):
        asyncio.run(ask_json(Address("127.0.0.1", 1), "GET", "/"))
