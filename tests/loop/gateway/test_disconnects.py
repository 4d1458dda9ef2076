"""Clients that go away or read slowly: what they asked for is cancelled, nobody else is held up."""

import asyncio
import gc
import resource
import socket

import pytest

from tests.loop.gateway.backend import TinyBackend, expected
from tests.loop.gateway.harness import Raw, Served, served

GOOD = {"model": "tiny", "prompt": "hi"}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 2])
def test_gone_while_it_is_served(n: int, stream: bool, after: int) -> None:
    @served(lambda: TinyBackend(gate=asyncio.Event(), gate_after=after))
    async def check(s: Served) -> None:
        raw = await s.raw()
        await raw.post({**GOOD, "n": n, "stream": stream})
        await s.backend.wait_open(n)
        if stream and after:
            await raw.head()
        raw.abort()
        await s.backend.wait_open(0)
        assert len(s.backend.closed) == n
        assert s.backend.gate is not None
        s.backend.gate.set()
        assert (await s.complete()).status_code == 200

    check()


@served(lambda: TinyBackend(gate=asyncio.Event()))
async def test_gone_by_closing_its_half(s: Served) -> None:
    raw = await s.raw()
    await raw.post(GOOD)
    await s.backend.wait_open(1)
    raw.writer.close()
    await s.backend.wait_open(0)


@served()
async def test_gone_at_every_byte_of_a_request(s: Served) -> None:
    body = b'{"model": "tiny", "prompt": "hi", "stream": true}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    whole = head + b"content-length: %d\r\n\r\n" % len(body) + body
    for cut in range(len(whole) + 1):
        raw = await s.raw()
        await raw.send(whole[:cut])
        if cut % 2:
            raw.writer.close()
        else:
            raw.abort()
    await s.backend.wait_open(0)
    assert (await s.complete()).status_code == 200


@served(lambda: TinyBackend(max_model_len=10_000))
async def test_gone_at_many_points_of_an_answer(s: Served) -> None:
    for number in range(40):
        raw = await s.raw()
        await raw.post({**GOOD, "stream": True, "max_tokens": 2000, "n": 1 + number % 2})
        await raw.reader.readexactly(1 + 97 * number)
        raw.abort()
    await s.backend.wait_open(0)
    assert len(s.backend.closed) == len(s.backend.seen)


async def _slow_reader(s: Served, body: dict[str, object]) -> Raw:
    """A client with a small receive buffer that does not read."""
    host, _, port = s.gateway.url.removeprefix("http://").rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    raw = Raw(*await asyncio.open_connection(sock=sock, limit=4096))
    s.raws.append(raw)
    await raw.post(body)
    return raw


LONG = 4_000
"""Tokens of an answer far larger than all buffers on its way."""


@pytest.mark.slow
@served(lambda: TinyBackend(max_model_len=100_000), write_buffer_bytes=4096)
async def test_slow_reader_holds_up_nobody_and_fills_no_memory(s: Served) -> None:
    slow = await _slow_reader(s, {**GOOD, "stream": True, "max_tokens": LONG, "n": 4})
    await s.backend.wait_open(4)
    for _ in range(20):
        assert (await s.complete(max_tokens=50, stream=True)).status_code == 200
    connection = max(s.gateway.connections_now(), key=lambda each: each.transport.get_write_buffer_size())
    for _ in range(200):  # the answer stops where the reader's patience is bounded, and goes no further
        await asyncio.sleep(0.002)
        assert connection.transport.get_write_buffer_size() < 64 << 10
    assert len(s.backend.open) == 4
    pieces = [b""]
    while b"[DONE]" not in pieces[-1][-100:]:
        pieces.append(await slow.reader.read(1 << 20))
    assert b"".join(pieces).count(b'"text":') == 4 * LONG
    await s.backend.wait_open(0)


@served(lambda: TinyBackend(max_model_len=100_000), write_buffer_bytes=4096, write_stall_s=0.2)
async def test_reader_that_reads_nothing_is_cut(s: Served) -> None:
    await _slow_reader(s, {**GOOD, "stream": True, "max_tokens": LONG, "n": 4})
    await s.backend.wait_open(4)
    await s.backend.wait_open(0)
    assert s.gateway.connections.stalled == 1


@pytest.mark.slow
@served(
    lambda: TinyBackend(max_model_len=100_000), write_buffer_bytes=4096, write_stall_s=0.3, deadline_s=0.5
)
async def test_deadline_of_a_reader_that_reads_nothing(s: Served) -> None:
    await _slow_reader(s, {**GOOD, "stream": True, "max_tokens": LONG, "n": 4})
    await s.backend.wait_open(4)
    await s.backend.wait_open(0)


@served()
async def test_pipelined_requests_are_answered_in_order(s: Served) -> None:
    raw = await s.raw()
    for count in (3, 2, 1):
        await raw.post({**GOOD, "max_tokens": count})
    for count in (3, 2, 1):
        _, _, answer = await raw.answer()
        assert answer["choices"][0]["text"] == expected("hi", count)


@served(max_connections=50)
async def test_half_open_connections_make_room(s: Served) -> None:
    first = await s.raw()
    await first.send(b"GET /health HTTP/1.1\r\n")
    raws = [await s.raw() for _ in range(120)]
    assert (await s.complete()).status_code == 200
    assert await first.rest() == b""  # idle longest, dropped first
    assert s.gateway.connections.open <= 51
    assert s.gateway.connections.refused >= 70
    await raws[-1].send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await raws[-1].answer())[0] == 200


@served(max_connections=3, backend=lambda: TinyBackend(gate=asyncio.Event()))
async def test_connections_that_are_served_are_not_dropped(s: Served) -> None:
    raws = [await s.raw() for _ in range(3)]
    for raw in raws:
        await raw.post(GOOD)
    await s.backend.wait_open(3)
    late = await s.raw()
    assert (await late.answer())[0] == 503
    assert s.backend.gate is not None
    s.backend.gate.set()
    for raw in raws:
        assert (await raw.answer())[0] == 200


@pytest.mark.slow
@served(within_s=600.0, header_timeout_s=5.0)
async def test_thousands_of_half_open_connections(s: Served) -> None:
    """As many as the limit of open files lets one process have at both ends; the server serves on, then drops them."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(5000, (soft - 200) // 2 - 10)
    raws = []
    for number in range(count):
        raws.append(await s.raw())
        await raws[-1].send((b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nx: ")[number % 3])
        if number % 500 == 0:
            assert (await s.complete()).status_code == 200
    shared = s.gateway.connections
    assert shared.open + shared.timed_out + shared.refused >= count
    for raw in raws:
        rest = await raw.rest()
        assert rest == b"" or rest.startswith(b"HTTP/1.1 408 ")
    assert (await s.complete()).status_code == 200
    assert shared.open <= 1


@pytest.mark.slow
@served(lambda: TinyBackend(token_s=0.001), within_s=600.0)
async def test_memory_does_not_grow_with_clients_that_leave(s: Served) -> None:
    """Objects after two equal storms of clients that go away, ask wrongly, or are served."""

    async def storm() -> int:
        for number in range(100):
            raw = await s.raw()
            await raw.post(
                {**GOOD, "stream": bool(number % 2), "n": 1 + number % 3, "max_tokens": 1 + number % 40}
            )
            if number % 3:
                await raw.reader.read(20 * (number % 7))
            raw.abort()
            assert (await s.complete(max_tokens=0)).status_code == 400
            assert (await s.complete(max_tokens=2, stream=True)).status_code == 200
        await s.backend.wait_open(0)
        while s.gateway.connections.open > 1:  # the client's own stays; those that were left are noticed soon
            await asyncio.sleep(0.01)
        s.raws.clear()
        s.backend.seen.clear()
        s.backend.closed.clear()
        await asyncio.sleep(0)
        gc.collect()
        return len(gc.get_objects())

    await storm()
    first = await storm()
    assert await storm() < first + 200  # a leak of one object a request would be 300
    assert len(asyncio.all_tasks()) < 12
