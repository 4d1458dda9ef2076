"""A gateway on a real socket for each test, and the check that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from loop.gateway import Gateway, GatewayConfig, loop_factory
from tests.loop.gateway.backend import TinyBackend

JSON_HEADERS = {"content-type": "application/json"}


class Raw:
    """A connection whose bytes the test writes itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def post(
        self, body: dict[str, Any] | bytes, path: str = "/v1/completions", extra: str = ""
    ) -> None:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{extra}"
        await self.send(f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer."""
        async with asyncio.timeout(60):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of the next answer."""
        status, headers = await self.head()
        async with asyncio.timeout(60):
            body = await self.reader.readexactly(int(headers["content-length"]))
        return status, headers, json.loads(body)

    async def chunk(self) -> bytes:
        """The next chunk of a chunked answer."""
        async with asyncio.timeout(60):
            size = int(await self.reader.readline(), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        async with asyncio.timeout(120):
            return await self.reader.read()

    def abort(self) -> None:
        self.writer.transport.abort()


@dataclass
class Served:
    """What a test has."""

    backend: TinyBackend
    gateway: Gateway
    http: httpx.AsyncClient
    raws: list[Raw]

    async def raw(self) -> Raw:
        host, _, port = self.gateway.url.removeprefix("http://").rpartition(":")
        raw = Raw(*await asyncio.open_connection(host, int(port)))
        self.raws.append(raw)
        return raw

    async def complete(self, **body: Any) -> httpx.Response:
        return await self.http.post("/v1/completions", json={"model": "tiny", "prompt": "hi", **body})

    async def chat(self, content: str = "hi", **body: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        return await self.http.post(
            "/v1/chat/completions", json={"model": "tiny", "messages": messages, **body}
        )


def served(
    backend: Callable[[], TinyBackend] = TinyBackend, within_s: float = 240.0, **config: Any
) -> Callable[[Callable[[Served], Awaitable[None]]], Callable[[], None]]:
    """Make a test of an async function that is given a running gateway."""

    def decorate(test: Callable[[Served], Awaitable[None]]) -> Callable[[], None]:
        def run_test() -> None:
            run(_with_gateway(test, backend, GatewayConfig(**{"port": 0, **config})), within_s)

        run_test.__name__ = getattr(test, "__name__", "test")
        run_test.__doc__ = test.__doc__
        return run_test

    return decorate


async def _with_gateway(
    test: Callable[[Served], Awaitable[None]], backend: Callable[[], TinyBackend], config: GatewayConfig
) -> None:
    tiny = backend()
    async with Gateway(tiny, config) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=99, verify=False, trust_env=False) as http:  # noqa: S501  # plain HTTP; loading certificates is slow
            world = Served(tiny, gateway, http, [])
            await test(world)
            for raw in world.raws:
                raw.abort()
        await tiny.wait_open(0)  # nothing that a client has left is still being served
    assert not tiny.open
    assert gateway.in_flight == 0


async def settled() -> None:
    """Let callbacks that are due run."""
    for _ in range(5):
        await asyncio.sleep(0)


def run(coroutine: Any, within_s: float = 240.0) -> None:
    """Run to the end, and see that no task is left."""

    async def whole() -> None:
        before = asyncio.all_tasks()
        async with asyncio.timeout(within_s):
            await coroutine
        async with asyncio.timeout(60):
            while left := asyncio.all_tasks() - before:
                await asyncio.wait(left)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(whole())


def events(text: str) -> list[Any]:
    """The events of a stream; the last must be [DONE]."""
    blocks = text.strip().split("\n\n")
    assert blocks[-1] == "data: [DONE]"
    assert all(block.startswith("data: ") for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]
