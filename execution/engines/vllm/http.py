"""A small HTTP/1.1 client on asyncio streams, for one loopback server that is ours to trust: one request a connection.

A stream of tokens is read as it comes; closing it closes the connection, which is how vLLM learns of a cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

_MAX_HEAD_BYTES = 64 * 1024
_MAX_CHUNK_BYTES = 16 << 20


class HttpError(OSError):
    """The server is gone, or does not speak HTTP."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and the key it wants."""

    host: str
    port: int
    api_key: str = ""

    @property
    def url(self) -> str:
        """For people and other clients."""
        return f"http://{self.host}:{self.port}"


class Answer:
    """Status and body of one request. An async context manager that closes its connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.status = 0
        self._length: int | None = None
        self._chunked = False

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def read_head(self) -> None:
        """Status and headers."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as error:
            raise HttpError(f"the server closed the connection: {error}") from error
        lines = head.decode("latin-1").split("\r\n")
        try:
            self.status = int(lines[0].split()[1])
            for line in lines[1:]:
                name, _, value = line.partition(":")
                if name.lower() == "content-length":
                    self._length = int(value)
                elif name.lower() == "transfer-encoding":
                    self._chunked = "chunked" in value.lower()
        except (IndexError, ValueError) as error:
            raise HttpError(f"the server does not speak HTTP: {lines[0]!r:.80}") from error

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        try:
            if self._chunked:
                while size := int((await self._reader.readline()).split(b";")[0], 16):
                    if size > _MAX_CHUNK_BYTES:
                        raise HttpError(f"a chunk of {size} bytes")
                    yield await self._reader.readexactly(size)
                    await self._reader.readexactly(2)
            elif self._length is not None:
                yield await self._reader.readexactly(self._length)
            else:
                while part := await self._reader.read(65536):
                    yield part
        except (asyncio.IncompleteReadError, OSError, ValueError) as error:
            raise HttpError(f"the server closed the connection: {error}") from error

    async def body(self) -> bytes:
        """All of it."""
        return b"".join([part async for part in self.parts()])

    async def events(self) -> AsyncIterator[str]:
        """Data of server-sent events."""
        rest = b""
        async for part in self.parts():
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip().decode()


async def ask(address: Address, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
    """Send a request and read the head of its answer. Raises HttpError."""
    try:
        reader, writer = await asyncio.open_connection(address.host, address.port, limit=_MAX_HEAD_BYTES)
    except OSError as error:
        raise HttpError(f"{address.url} cannot be reached: {error}") from error
    payload = b"" if body is None else json.dumps(body).encode()
    head = [
        f"{method} {path} HTTP/1.1", f"Host: {address.host}:{address.port}", "Connection: close",
        f"Content-Length: {len(payload)}", "Content-Type: application/json", "Accept: */*",
    ]  # fmt: skip
    if address.api_key:
        head.append(f"Authorization: Bearer {address.api_key}")
    answer = Answer(reader, writer)
    try:
        writer.write("\r\n".join([*head, "", ""]).encode("latin-1") + payload)
        await writer.drain()
        await answer.read_head()
    except BaseException as error:
        writer.close()
        if isinstance(error, OSError) and not isinstance(error, HttpError):
            raise HttpError(f"{address.url} cannot be reached: {error}") from error
        raise
    return answer


async def ask_json(
    address: Address, method: str, path: str, body: dict[str, Any] | None = None
) -> tuple[int, Any]:
    """(status, body as JSON; None where it is none). Raises HttpError."""
    async with await ask(address, method, path, body) as answer:
        text = await answer.body()
    try:
        return answer.status, json.loads(text)
    except ValueError:
        return answer.status, None
