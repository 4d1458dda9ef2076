"""The process behind a RemoteEngine: how it starts, fails to, and never stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from execution.replicas.remote import RemoteEngine
from loop.contracts.engine import (
    EngineCrashedError,
    EngineDrainingError,
    EngineError,
    EngineLimits,
    EngineRequest,
    EngineRequestError,
    EngineSpec,
    SamplingParams,
)

LONG = SamplingParams(max_tokens=100_000, ignore_eos=True, seed=0)


def spec(**options: str | float | bool) -> EngineSpec:
    return EngineSpec("simulated", "llama-3.1-8b", options=options)


def request_of(name: str, sampling: SamplingParams = LONG) -> EngineRequest:
    return EngineRequest(name, tuple(b"Once upon a time"), sampling)


def alive(pid: int) -> bool:
    """Runs, or is a zombie that nobody collected."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def again_and_again(what: Callable[[], Awaitable[Any]]) -> None:
    """Until it raises."""
    while True:
        await what()


async def refused(engine: RemoteEngine) -> str:
    """Why it does not start; its process is gone afterwards."""
    pids: list[int | None] = []

    async def watch() -> None:
        while not pids or pids[-1] is None:
            pids.append(engine.pid)
            await asyncio.sleep(0.001)

    watcher = asyncio.ensure_future(watch())
    with pytest.raises(EngineError) as caught:
        await engine.start()
    watcher.cancel()
    assert engine.pid is None
    assert not any(alive(pid) for pid in pids if pid)
    with pytest.raises(EngineError, match="build another one"):
        await engine.start()
    with pytest.raises(EngineCrashedError, match=r"did not start|ended with"):
        await anext(engine.generate(request_of("a")))
    await engine.stop()
    return str(caught.value)


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        (RemoteEngine(spec(), python="no/such/python"), "no/such/python cannot be run"),
        (RemoteEngine(spec(), python=["/bin/false"]), "ended with exit code 1"),
        (RemoteEngine(EngineSpec("steam", "tiny-llama")), "unknown engine 'steam'"),
        pytest.param(RemoteEngine(spec(gpus=4)), "unknown option 'gpus'", marks=pytest.mark.slow),
        pytest.param(
            RemoteEngine(spec(start_s=60.0), start_timeout_s=3.0),
            "did not start within 3 s",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["interpreter", "exit", "engine", "options", "too slow"],
)
def test_what_cannot_start_says_why_and_leaves_nothing(engine: RemoteEngine, says: str) -> None:
    assert says in asyncio.run(refused(engine))


def test_the_last_words_of_a_process_are_told() -> None:
    mute = RemoteEngine(spec(), python=["/bin/sh", "-c", "echo out of tea >&2; exit 3"])
    said = asyncio.run(refused(mute))
    assert "ended with exit code 3" in said
    assert said.endswith("it said:\nout of tea")


@pytest.mark.slow
def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    async def check() -> None:
        engine = RemoteEngine(spec(start_s=60.0))
        starting = asyncio.ensure_future(engine.start())
        while engine.pid is None:
            await asyncio.sleep(0.001)
        pid = engine.pid
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not alive(pid)

    asyncio.run(check())


@pytest.mark.slow
def test_one_process_through_its_life() -> None:
    """What needs no process of its own, in one."""

    async def check() -> None:
        engine = RemoteEngine(spec(), env={"OMP_NUM_THREADS": "1"})
        await engine.start()
        pid = engine.pid
        assert pid is not None
        assert os.getpgid(pid) == pid != os.getpgid(0)
        assert os.getsid(pid) == pid
        await _other_methods(engine)
        await _requests_that_cannot_be_sent(engine)
        await _readers_that_leave(engine)
        stream = engine.generate(request_of("open"))
        await anext(stream)
        await engine.stop()
        assert not alive(pid)
        assert engine.pid is None
        with pytest.raises(EngineCrashedError, match="stopped before request open"):
            await anext(stream)
        await engine.stop()

    asyncio.run(check())


async def _other_methods(engine: RemoteEngine) -> None:
    stats: dict[str, Any] = await engine.call("stats")
    assert stats["limits"]["max_num_seqs"] == EngineLimits().max_num_seqs
    for wrong in ("_end_all", "no_such_method", "__class__"):
        with pytest.raises(EngineError, match="no method"):
            await engine.call(wrong)
    with pytest.raises(EngineError, match="TypeError"):
        await engine.call("cancel")


async def _requests_that_cannot_be_sent(engine: RemoteEngine) -> None:
    for wrong in (SamplingParams(seed=2**70), SamplingParams(max_tokens="many")):  # type: ignore[arg-type]
        with pytest.raises(EngineRequestError):
            await anext(engine.generate(request_of("odd", wrong)))
    assert (await engine.stats()).running == 0


async def _readers_that_leave(engine: RemoteEngine) -> None:
    """The same id again and again, while the worker still ends the attempt before."""
    first = []
    for _ in range(5):
        stream = engine.generate(request_of("again"))
        first.append((await anext(stream)).token_ids[0])
        await stream.aclose()  # type: ignore[attr-defined]
    assert len(set(first)) == 1
    while (await engine.stats()).running:
        await asyncio.sleep(0.002)


@pytest.mark.slow
def test_one_that_hangs_is_killed() -> None:
    async def check() -> None:
        engine = RemoteEngine(spec(), stop_timeout_s=0.1)
        await engine.start()
        pid = engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        asking = asyncio.ensure_future(engine.stats())
        await asyncio.sleep(0)
        await engine.stop()
        assert not alive(pid)
        with pytest.raises(EngineCrashedError):
            await asking

    asyncio.run(check())


@pytest.mark.slow
def test_killed_while_its_own_child_holds_the_socket() -> None:
    """Nobody sees the socket close then; and the child goes with it."""

    async def check() -> None:
        with_child = ["/bin/sh", "-c", 'sleep 600 & echo child $! >&2; exec "$0" "$@"', sys.executable]
        engine = RemoteEngine(spec(), python=with_child)
        await engine.start()
        pid = engine.pid
        assert pid is not None
        assert engine._child is not None
        grandchild = int(engine._child.said().split("child ")[1].split()[0])
        stream = engine.generate(request_of("open"))
        await anext(stream)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineCrashedError, match="SIGKILL"):
            await again_and_again(lambda: anext(stream))
        await engine.stop()
        async with asyncio.timeout(300):
            while _state(grandchild) not in {"", "Z"}:
                await asyncio.sleep(0.005)

    asyncio.run(check())


@pytest.mark.slow
def test_sigterm_finishes_what_has_begun() -> None:
    async def check() -> None:
        engine = RemoteEngine(spec())
        await engine.start()
        pid = engine.pid
        assert pid is not None
        stream = engine.generate(request_of("last", SamplingParams(max_tokens=40, ignore_eos=True)))
        tokens = list((await anext(stream)).token_ids)
        os.kill(pid, signal.SIGTERM)
        with pytest.raises((EngineDrainingError, EngineCrashedError)):
            await again_and_again(
                lambda: anext(engine.generate(request_of("late", SamplingParams(max_tokens=1))))
            )
        async for output in stream:
            tokens += output.token_ids
        assert len(tokens) == 40
        with pytest.raises(EngineCrashedError, match=r"exit code 0|closed its socket|was stopped"):
            await again_and_again(engine.stats)
        await engine.stop()
        assert not alive(pid)

    asyncio.run(check())


PARENT = """
import asyncio, sys
from execution.replicas.remote import RemoteEngine
from loop.contracts.engine import EngineSpec
async def main():
    engine = RemoteEngine(EngineSpec("simulated", "llama-3.1-8b"))
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.slow
def test_a_worker_dies_with_its_parent() -> None:
    async def check() -> None:
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE
        )
        assert parent.stdout is not None
        pid = int(await parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        await parent.wait()
        async with asyncio.timeout(300):
            while _state(pid) not in {"", "Z"}:
                await asyncio.sleep(0.005)

    asyncio.run(check())


def _state(pid: int) -> str:
    """Letter of a process's state; empty: there is none. Its new parent may not collect it."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123 - not a file
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
