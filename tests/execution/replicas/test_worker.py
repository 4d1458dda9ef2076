"""The worker's own side: what it says when nobody has told it properly, and when its socket closes."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from execution.replicas.protocol import (
    Ask,
    Broken,
    Connection,
    Drop,
    FromWorker,
    Quit,
    Refused,
    Start,
    Started,
    StartFailed,
    Submit,
)
from loop.contracts.engine import EngineRequest, EngineSpec

SPEC = EngineSpec("simulated", "llama-3.1-8b")
REQUEST = EngineRequest("r", (65, 66))


@pytest.fixture
def worker() -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A worker that was told nothing yet, and our end of its socket."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    command = [sys.executable, "-m", "execution.replicas.worker", str(theirs.fileno()), str(os.getpid())]
    process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE)
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.communicate()
        ours.close()


async def talk(sock: socket.socket) -> tuple[Connection[Any], asyncio.Queue[Any]]:
    heard: asyncio.Queue[Any] = asyncio.Queue()
    connection: Connection[Any] = Connection(FromWorker, heard.put_nowait, heard.put_nowait)
    await asyncio.get_running_loop().create_connection(lambda: connection, sock=sock)
    return connection, heard


@pytest.mark.slow
def test_it_answers_in_any_order_and_ends_when_told(
    worker: tuple[subprocess.Popen[bytes], socket.socket],
) -> None:
    process, sock = worker

    async def check() -> None:
        connection, heard = await talk(sock)
        connection.send(Submit.of(1, REQUEST))
        connection.send(Ask(2, "stats"))
        connection.send(Drop(9))
        early = [await heard.get(), await heard.get()]
        assert {type(message) for message in early} == {Broken, Refused}
        assert all("not started" in message.message for message in early)
        connection.send(Start(EngineSpec("simulated", "no-such-model")))
        failed = await heard.get()
        assert isinstance(failed, StartFailed)
        assert (failed.kind, "no-such-model" in failed.message) == ("EngineError", True)
        connection.send(Start(SPEC))
        assert isinstance(await heard.get(), Started)
        connection.send(Quit())
        assert await heard.get() == ""

    asyncio.run(check())
    assert process.wait(300) == 0


@pytest.mark.slow
@pytest.mark.parametrize("started", [False, True])
def test_it_ends_when_nobody_listens(
    worker: tuple[subprocess.Popen[bytes], socket.socket], started: bool
) -> None:
    process, sock = worker

    async def check() -> None:
        connection, heard = await talk(sock)
        if started:
            connection.send(Start(SPEC))
            assert isinstance(await heard.get(), Started)
        connection.close()

    asyncio.run(check())
    assert process.wait(300) == 1


def test_it_does_not_serve_another_parent() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "execution.replicas.worker", str(theirs.fileno()), "1"]
        done = subprocess.run(command, pass_fds=(theirs.fileno(),), check=False, timeout=300)
    assert done.returncode == 1
