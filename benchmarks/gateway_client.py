"""The client of `benchmarks.gateway`, in a process of its own: many keep-alive connections, little work for each answer.

Reads one JSON command a line on stdin and answers one a line on stdout:
`{"host", "port", "path", "bodies": [...], "workers": 8, "starts_s": [...] or null}` ->
`{"answers": [[ttft_s, total_s, status, events, text], ...], "wall_s", "cpu_s"}`. Worker connections are opened before
the clock starts. Without `starts_s` each worker asks again as soon as it has its answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

from loop.gateway import loop_factory

_EVENT = b"data: "
_END = b"0\r\n\r\n"


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self._done: asyncio.Future[bytes] | None = None
        self._length: int | None = None
        self._head_bytes = 0
        self._bytes = 0
        self.first_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its base class

    def connection_lost(self, exc: Exception | None) -> None:
        """What was asked has no answer."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError(f"connection lost: {exc}"))

    def close(self) -> None:
        """No more requests."""
        if self._transport is not None:
            self._transport.close()

    async def ask(self, request: bytes) -> bytes:
        """The whole answer, head and body as they came; `first_s` is when the first of the body came."""
        if self._transport is None:
            raise ConnectionError("not connected")
        self._pieces, self._length, self._head_bytes, self._bytes, self.first_s = [], None, 0, 0, 0.0
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._done

    def data_received(self, data: bytes) -> None:
        """Look for the end, and no further."""
        self._pieces.append(data)
        self._bytes += len(data)
        if not self._head_bytes:
            head = b"".join(self._pieces)
            end = head.find(b"\r\n\r\n")
            if end < 0:
                return
            self._head_bytes = end + 4
            self._pieces = [head]
            at = head.lower().find(b"\r\ncontent-length: ", 0, end)
            self._length = int(head[at + 18 : head.index(b"\r\n", at + 18)]) if at >= 0 else None
        if not self.first_s and self._bytes > self._head_bytes:
            self.first_s = time.perf_counter()
        if self._over(data) and self._done is not None and not self._done.done():
            self._done.set_result(b"".join(self._pieces))

    def _over(self, data: bytes) -> bool:
        if self._length is not None:
            return self._bytes >= self._head_bytes + self._length
        tail = data if len(data) >= len(_END) else b"".join(self._pieces[-4:])
        return tail.endswith(_END)


def text_of(answer: bytes) -> tuple[int, int, str]:
    """(status, events, text) of an answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head[9:12])
    if b"text/event-stream" not in head:
        if status != 200:
            return status, 0, body.decode()
        return status, 1, "".join(choice["text"] for choice in json.loads(body)["choices"])
    text, events = "", 0
    for line in _unchunked(body).splitlines():
        if line.startswith(_EVENT) and line != b"data: [DONE]":
            events += 1
            text += "".join(choice["text"] for choice in json.loads(line[len(_EVENT) :])["choices"])
    return status, events, text


def _unchunked(body: bytes) -> bytes:
    return b"".join(_chunks(body))


def _chunks(body: bytes) -> Iterator[bytes]:
    at = 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end], 16)
        if size == 0:
            return
        yield body[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


async def run(command: dict[str, Any]) -> dict[str, Any]:
    """Carry out one command."""
    host, port, path = command["host"], command["port"], command["path"]
    requests = [_request(host, port, path, body.encode()) for body in command["bodies"]]
    starts_s = command.get("starts_s")
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(command["workers"]):
        _, connection = await loop.create_connection(Connection, host, port)
        connections.append(connection)
    raw: list[tuple[float, float, bytes]] = [(0.0, 0.0, b"")] * len(requests)
    numbers = iter(range(len(requests)))
    began_s, cpu_s = time.perf_counter(), time.process_time()

    async def work(connection: Connection) -> None:
        for number in numbers:
            if starts_s is not None:
                await asyncio.sleep(began_s + starts_s[number] - time.perf_counter())
            asked_s = time.perf_counter()
            answer = await connection.ask(requests[number])
            raw[number] = (connection.first_s - asked_s, time.perf_counter() - asked_s, answer)

    await asyncio.gather(*map(work, connections))
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    for connection in connections:
        connection.close()
    answers = [[ttft_s, total_s, *text_of(answer)] for ttft_s, total_s, answer in raw]
    return {"answers": answers, "wall_s": wall_s, "cpu_s": cpu_s}


def _request(host: str, port: int, path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def main() -> None:
    """Serve commands until stdin ends."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        for line in sys.stdin:
            print(json.dumps(runner.run(run(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
