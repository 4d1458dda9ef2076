"""A small OpenAI-compatible server that answers by script, on an event loop in a thread of its own.

It writes the bytes of its answers itself, so that a test decides where they are cut into pieces.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Write = Callable[[bytes], Awaitable[None]]
Body = dict[str, Any]
Script = Callable[[str, Body, Write], Awaitable[None]]
"""(path, body of the request, writes bytes of the answer)."""

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Toy:
    """Where it listens, and what it was asked."""

    url: str = ""
    asked: list[tuple[str, Body]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0
    answered: int = 0
    """Answers that were written to the end."""
    lost: int = 0
    """Clients that went away before their answer was complete."""

    @property
    def prompts(self) -> list[Any]:
        """Of all completions asked for."""
        return [body["prompt"] for _, body in self.asked if "prompt" in body]


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def piece(text: str, finish: str | None = None) -> bytes:
    """One event of a streamed completion."""
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish}]})


async def refuse(write: Write, status: int, message: str) -> None:
    """An error of the API."""
    body = json.dumps({"error": {"message": message, "code": status}}).encode()
    await write(f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


async def stream(write: Write, body: Body, *, pause_s: float = 0.0, tokens: int | None = None) -> None:
    """A whole streamed completion of `tokens` pieces (None: max_tokens), with usage where it is asked for."""
    count = body["max_tokens"] if tokens is None else tokens
    await write(SSE)
    for i in range(count):
        await write(chunk(piece("x", "length" if i == count - 1 else None)))
        if pause_s:
            await asyncio.sleep(pause_s)
    if body.get("stream_options", {}).get("include_usage"):
        prompt = body.get("prompt", "")
        told = len(prompt) if isinstance(prompt, list) else 2 * len(prompt.split()) + 3
        await write(
            chunk(event({"choices": [], "usage": {"prompt_tokens": told, "completion_tokens": count}}))
        )
    await write(chunk(event(b"[DONE]")) + b"0\r\n\r\n")


async def well_behaved(path: str, body: Body, write: Write) -> None:
    """Takes everything that a load test may ask for."""
    if path == "/v1/completions":
        await stream(write, body)
    else:
        await refuse(write, 404, f"no such path: {path}")


@contextmanager
def serving(
    script: Script = well_behaved, *, models: tuple[str, ...] = ("toy",), max_model_len: int | None = None
) -> Iterator[Toy]:
    """Serve on a free port."""
    toy = Toy()
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        toy.connections += 1

        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        with suppress(ConnectionError, asyncio.CancelledError):
            async for path, body, headers in _requests(reader):
                toy.headers.append(headers)
                if path == "/v1/models":
                    cards = [{"id": m, "max_model_len": max_model_len} for m in models]
                    text = json.dumps({"data": cards}).encode()
                    await write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
                    continue
                toy.asked.append((path, body))
                try:
                    await script(path, body, write)
                except ConnectionError:
                    toy.lost += 1
                    raise
                toy.answered += 1
                if writer.is_closing():
                    return
        writer.close()

    async def listen() -> asyncio.Server:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        toy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    def run() -> None:
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(listen())
        loop.call_soon(ready.set)
        loop.run_forever()
        server.close()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait(120.0)
    try:
        yield toy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60.0)


async def _requests(reader: asyncio.StreamReader) -> AsyncIterator[tuple[str, Body, dict[str, str]]]:
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        first, *lines = head.decode().split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }
        length = int(headers.get("content-length", 0))
        body = json.loads(await reader.readexactly(length)) if length else {}
        yield first.split()[1], body, headers
