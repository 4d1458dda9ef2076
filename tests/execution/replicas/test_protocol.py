"""Frames: whole messages come out however the bytes come in, and what is no message ends the connection."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.replicas.inbox import RemoteStream
from execution.replicas.outbox import Outbox
from execution.replicas.parts import Parts
from execution.replicas.protocol import (
    MAX_FRAME_BYTES,
    Answered,
    Ask,
    Broken,
    Cancel,
    Chunk,
    Connection,
    FromWorker,
    Outputs,
    Start,
    Submit,
    ToWorker,
    error_of,
    kind_of,
)
from loop.contracts.engine import (
    EngineBusyError,
    EngineCrashedError,
    EngineError,
    EngineFinish,
    EngineLimits,
    EngineOutput,
    EngineRequest,
    EngineSpec,
    SamplingParams,
    TokenLogprob,
)
from tests.examples import up_to

CHUNK = Chunk(
    7, (1, 2), "é", EngineFinish.STOP, (TokenLogprob(1, -0.5, ((1, -0.5), (2, -1.5))),) * 2, "END", 16, 1.25
)
REQUEST = EngineRequest(
    "r",
    (1, 2, 3),
    SamplingParams(max_tokens=5, seed=-(2**62), stop=("a", "b"), logprobs=2),
    priority=-1.5,
    arrival_s=3.25,
    generated=1,
    adapter="lora",
)
SPEC = EngineSpec("torch", "tiny", "name", EngineLimits(3, 4, 5), 9, {"a": 1, "b": "x", "c": 0.5, "d": True})


async def pair(
    received: Callable[[Any], None], kinds: Any = ToWorker
) -> tuple[Connection[Any], socket.socket, list[str]]:
    """A connection, the raw socket at its other end, and why it was lost."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    lost: list[str] = []
    connection: Connection[Any] = Connection(kinds, received, lost.append)
    await asyncio.get_running_loop().create_connection(lambda: connection, sock=ours)
    return connection, theirs, lost


def frame(message: Any) -> bytes:
    body = msgspec.msgpack.encode(message)
    return struct.pack(">I", len(body)) + body


@settings(max_examples=up_to(40))
@given(st.lists(st.integers(1, 400), max_size=12))
def test_messages_come_whole_however_they_are_cut(cuts: list[int]) -> None:
    messages = [Start(SPEC), Submit.of(1, REQUEST), Cancel(1), Ask(2, "stats"), Submit.of(3, REQUEST)]
    data = b"".join(map(frame, messages))

    async def check() -> None:
        found: list[Any] = []
        connection, theirs, lost = await pair(found.append)
        start = 0
        for end in [*(sum(cuts[: i + 1]) for i in range(len(cuts))), len(data)]:
            connection.data_received(data[start:end])
            start = max(start, end)
        assert [type(message) for message in found] == [type(message) for message in messages]
        assert (found[0], found[2], found[3]) == (messages[0], messages[2], messages[3])
        assert [found[1].read(), found[4].read()] == [REQUEST, REQUEST]
        assert not lost
        connection.close()
        theirs.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    "message",
    [
        Outputs([CHUNK, Chunk(8, (), "")]),
        Broken(1, "EngineBusyError", "full"),
        Answered(1, {"a": [1, None, "x"]}),
    ],
)
def test_what_is_sent_arrives(message: Any) -> None:
    async def check() -> None:
        found: list[Any] = []
        receiver, theirs, _ = await pair(found.append, FromWorker)
        sender: Connection[Any] = Connection(ToWorker, found.append, lambda _: None)
        await asyncio.get_running_loop().create_connection(lambda: sender, sock=theirs)
        sender.send(message)
        sender.send(message)
        while len(found) < 2:
            await asyncio.sleep(0)
        assert found == [message, message]
        sender.close()
        receiver.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (struct.pack(">I", MAX_FRAME_BYTES + 1), "a frame of"),
        (struct.pack(">I", 3) + b"\xff\xff\xff", "cannot be read"),
        (frame(["Nonsense", 1]), "cannot be read"),
        (frame(["Cancel", "one"]), "cannot be read"),
    ],
)
def test_what_is_no_message_ends_the_connection(data: bytes, says: str) -> None:
    async def check() -> None:
        connection, theirs, lost = await pair(lambda _: pytest.fail("a message?"))
        await asyncio.get_running_loop().sock_sendall(theirs, data)
        while not lost:
            await asyncio.sleep(0)
        assert says in lost[0]
        assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b""
        theirs.close()
        connection.close()

    asyncio.run(check())


def test_errors_keep_their_kind() -> None:
    class OwnBusyError(EngineBusyError):
        pass

    assert type(error_of(kind_of(OwnBusyError("full")), "full")) is EngineBusyError
    assert type(error_of(kind_of(ValueError("bad")), "bad")) is ValueError
    odd = error_of(kind_of(ZeroDivisionError("by zero")), "by zero")
    assert type(odd) is EngineError
    assert "ZeroDivisionError: by zero" in str(odd)


def output(number: int, finish: EngineFinish | None = None) -> EngineOutput:
    return EngineOutput("r", (number,), f"{number} ", (), finish, None, 5, 1.0)


@given(st.integers(1, 300))
def test_what_nobody_reads_is_joined(count: int) -> None:
    parts = Parts()
    for number in range(count):
        parts.add(output(number, EngineFinish.LENGTH if number == count - 1 else None))
        assert len(parts._outputs) <= 64
    whole = parts.take()
    assert whole.token_ids == tuple(range(count))
    assert whole.text == "".join(f"{number} " for number in range(count))
    assert (whole.finish, whole.cached_tokens) == (EngineFinish.LENGTH, 5)
    assert not parts


def test_while_the_parent_does_not_read_nothing_is_written() -> None:
    async def check() -> None:
        connection, theirs, _ = await pair(lambda _: None)
        outbox = Outbox(connection)
        big = EngineOutput("r", tuple(range(20_000)), "x" * 20_000)
        written = 0
        while not connection.congested:
            outbox.put(1, big)
            written += 1
            await asyncio.sleep(0)
        transport = connection._transport
        assert transport is not None
        unsent = transport.get_write_buffer_size()  # type: ignore[attr-defined]
        for _ in range(50):
            outbox.put(1, big)
            outbox.put(2, output(3))
            await asyncio.sleep(0)
        assert transport.get_write_buffer_size() == unsent  # type: ignore[attr-defined]
        found: list[Chunk] = []
        reader: Connection[Any] = Connection(FromWorker, lambda m: found.extend(m.chunks), lambda _: None)
        connection._writable = outbox.settle  # as the worker does
        await asyncio.get_running_loop().create_connection(lambda: reader, sock=theirs)
        while sum(len(chunk.token_ids) for chunk in found if chunk.stream == 1) < (written + 50) * 20_000:
            await asyncio.sleep(0)
        assert [chunk.token_ids for chunk in found if chunk.stream == 2] == [(3,) * 50]
        connection.close()
        reader.close()

    asyncio.run(check())


def test_a_stream_gives_what_came_before_its_error() -> None:
    async def check() -> None:
        stream = RemoteStream(7, "r")
        stream.push(CHUNK)
        stream.fail(EngineError("no more"))
        assert (await stream.next()).token_ids == (1, 2)
        with pytest.raises(EngineError, match="no more"):
            await stream.next()
        dead = RemoteStream(8, "r")
        dead.push(CHUNK)
        dead.fail(EngineCrashedError("gone"))
        with pytest.raises(EngineCrashedError, match="gone"):
            await dead.next()

    asyncio.run(check())
