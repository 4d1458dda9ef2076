"""A user of plain vLLM: the documented command, driven by the `openai` client, steered while requests queue."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from execution.engines.vllm import VllmEngine
from execution.engines.vllm.environment import ROOT
from execution.engines.vllm.http import Address, ask_json
from loop.contracts import EngineBusyError, EngineRequest, EngineRequestError, EngineSpec, SamplingParams
from tests.execution.engines.vllm import policies
from tests.execution.engines.vllm.adapters import write_adapter
from tests.execution.engines.vllm.conftest import Server

openai = pytest.importorskip("openai", reason="the client of these tests")
pytestmark = pytest.mark.slow

LENGTHS = (90, 12, 60, 30, 120, 45)
PATIENCE_S = 600.0


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, PATIENCE_S))


def client(server: Server) -> Any:
    return openai.AsyncOpenAI(
        base_url=f"{server.address.url}/v1", api_key=server.address.api_key, max_retries=0, timeout=PATIENCE_S
    )


async def steer(server: Server, method: str, path: str = "", body: Any = None) -> tuple[int, Any]:
    return await ask_json(server.address, method, f"/v1/autopoiesis{path}", body)


async def status(server: Server) -> dict[str, Any]:
    code, found = await steer(server, "GET")
    assert code == 200
    return found


async def use(server: Server, source: str, name: str = "") -> tuple[int, Any]:
    return await steer(server, "PUT", "/policy", {"name": name, "source": source})


async def eventually(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await what():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def one_seat_taken(server: Server) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """One request runs and no other may, until the yielded function is called."""
    code, _ = await steer(server, "PUT", "/limits", {"max_num_seqs": 1})
    assert code == 200
    stream = await client(server).completions.create(
        model=server.model, prompt=[65] * 4, max_tokens=1900, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(aiter(stream))
    try:
        yield stream.close
    finally:
        await stream.close()
        await steer(server, "PUT", "/limits", {"max_num_seqs": 64})


async def finishing_order(server: Server, swap: Callable[[], Awaitable[None]] | None = None) -> list[int]:
    """Prompts of LENGTHS wait behind one that runs; who is done first, second... (`swap`: called meanwhile)."""
    order: list[int] = []
    chat = client(server)

    async def one(length: int) -> None:
        answer = await chat.completions.create(
            model=server.model, prompt=[66] * length, max_tokens=3, extra_body={"ignore_eos": True}
        )
        assert answer.usage.completion_tokens == 3
        order.append(length)

    async with one_seat_taken(server) as let_go:
        tasks = []
        for length in LENGTHS:  # one after the other: the order of arrival is that of LENGTHS
            tasks.append(asyncio.create_task(one(length)))
            await eventually(lambda: waiting(server, len(tasks)))
        if swap is not None:
            await swap()
        await let_go()
        await asyncio.gather(*tasks)
    return order


async def waiting(server: Server, requests: int) -> bool:
    return int((await status(server))["waiting"]) == requests


@pytest.fixture(autouse=True)
def as_started(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test finds the server as it came up."""
    yield
    if "server" in request.fixturenames:
        server: Server = request.getfixturevalue("server")
        run(use(server, policies.SHORTEST_FIRST, "shortest_first.py"))


def test_what_the_adapter_relies_on_is_there(vllm_python: str) -> None:
    done = subprocess.run(
        [vllm_python, "-W", "ignore", "-c",
         "from execution.engines.vllm import private; print(private.broken())"],
        env={"PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1] == "[]", (
        "vLLM has changed: adapt execution/engines/vllm/private.py and what uses these names"
    )


def test_it_starts_with_the_policy_file(server: Server) -> None:
    found = run(status(server))
    assert found["policy"]["name"] == "shortest_first.py"
    assert run(finishing_order(server)) == sorted(LENGTHS)


def test_a_policy_swapped_while_requests_queue_orders_them(server: Server) -> None:
    async def check() -> list[int]:
        async def swap() -> None:
            code, found = await use(server, policies.LONGEST_FIRST, "longest")
            assert (code, found["policy"]["name"]) == (200, "longest")
            assert found["waiting"] == len(LENGTHS)

        return await finishing_order(server, swap)

    assert run(check()) == sorted(LENGTHS, reverse=True)


def test_without_a_policy_it_is_first_come_first_served(server: Server) -> None:
    async def check() -> list[int]:
        async def drop() -> None:
            code, found = await steer(server, "DELETE", "/policy")
            assert (code, found["policy"]) == (200, None)

        return await finishing_order(server, drop)

    assert run(check()) == list(LENGTHS)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (policies.NO_PYTHON, "SyntaxError"),
        (policies.RAISES, "ZeroDivisionError"),
        (policies.NOT_A_NUMBER, "nan"),
        (policies.HANGS, "deadline"),
        ("import os\n" + policies.SHORTEST_FIRST, "os"),
    ],
)
def test_a_broken_policy_leaves_the_old_one_in_place(server: Server, source: str, why: str) -> None:
    async def check() -> tuple[list[int], list[Any]]:
        found: list[Any] = []

        async def swap() -> None:
            found.extend(await use(server, source, "broken"))

        return await finishing_order(server, swap), found

    order, (code, answer) = run(check())
    assert order == sorted(LENGTHS)
    assert code == 422
    assert why in answer["message"]
    assert run(status(server))["policy"]["name"] == "shortest_first.py"


def test_a_policy_that_fails_in_service_is_counted_and_nobody_is_lost(server: Server) -> None:
    async def check() -> list[int]:
        async def swap() -> None:
            code, _ = await use(server, policies.FAILS_LATER, "fails later")
            # the example that it was tried on shows the queue: it fails there already
            assert code == 422

        return await finishing_order(server, swap)

    assert run(check()) == sorted(LENGTHS)

    async def idle() -> list[int]:
        code, _ = await use(server, policies.FAILS_LATER, "fails later")
        assert code == 200  # nobody waits now
        return await finishing_order(server)

    before = run(status(server))["faults"]["errors"]
    assert sorted(run(idle())) == sorted(LENGTHS)
    assert run(status(server))["faults"]["errors"] > before


def test_a_refused_request_is_told_so(server: Server) -> None:
    async def check() -> None:
        assert (await use(server, policies.SHORT_ONES_ONLY, "short only"))[0] == 200
        chat = client(server)
        long = await chat.completions.create(model=server.model, prompt=[66] * 100, max_tokens=3)
        assert (long.choices[0].finish_reason, long.choices[0].text) == ("abort", "")
        assert long.choices[0].stop_reason == "rejected by policy short only"
        short = await chat.completions.create(
            model=server.model, prompt=[66] * 10, max_tokens=3, extra_body={"ignore_eos": True}
        )
        assert short.usage.completion_tokens == 3
        engine = engine_at(server)
        await engine.start()
        with pytest.raises(EngineBusyError, match="rejected by policy"):
            await anext(engine.generate(EngineRequest("long", (66,) * 100)))
        await engine.stop()
        assert (await status(server))["rejected"] >= 2

    run(check())


def test_priorities_of_the_body_count_without_a_policy(server: Server) -> None:
    async def check() -> list[int]:
        await steer(server, "DELETE", "/policy")
        order: list[int] = []
        chat = client(server)

        async def one(number: int) -> None:
            await chat.completions.create(
                model=server.model, prompt=[66] * 5, max_tokens=2, extra_body={"priority": number}
            )
            order.append(number)

        async with one_seat_taken(server) as let_go:
            tasks = []
            for number in (3, 1, 2, -4):
                tasks.append(asyncio.create_task(one(number)))
                await eventually(lambda: waiting(server, len(tasks)))
            await let_go()
            await asyncio.gather(*tasks)
        return order

    assert run(check()) == [-4, 1, 2, 3]


def test_limits_change_at_run_time(server: Server) -> None:
    async def check() -> None:
        code, found = await steer(server, "PUT", "/limits", {"max_num_seqs": 2, "max_num_batched_tokens": 64})
        assert (code, found["max_num_seqs"], found["max_num_batched_tokens"]) == (200, 2, 64)
        chat = client(server)
        tasks = [
            asyncio.create_task(
                chat.completions.create(
                    model=server.model, prompt=[66] * 150, max_tokens=60, extra_body={"ignore_eos": True}
                )
            )
            for _ in range(5)
        ]
        most = 0
        while not all(task.done() for task in tasks):
            most = max(most, (await status(server))["running"])
        assert most == 2
        for wrong in (
            {"max_num_seqs": 0},
            {"max_num_seqs": 1000},
            {"max_num_seqs": "2"},
            {"seats": 1},
            [],
            3,
        ):
            code, found = await steer(server, "PUT", "/limits", wrong)
            assert (code, found["error"]) == (400, "invalid")
        assert (await status(server))["max_num_seqs"] == 2
        await steer(server, "PUT", "/limits", {"max_num_seqs": 64, "max_num_batched_tokens": 4096})

    run(check())


def test_the_control_routes_want_the_key(server: Server) -> None:
    async def check() -> None:
        for key in ("", "another key"):
            stranger = Address(server.address.host, server.address.port, key)
            for method, path in (("GET", ""), ("PUT", "/policy"), ("POST", "/sleep"), ("PUT", "/limits")):
                code, _ = await ask_json(stranger, method, f"/v1/autopoiesis{path}", {})
                assert code == 401
        code, found = await steer(server, "PUT", "/policy", {"name": "no source"})
        assert (code, found["error"]) == (400, "invalid")

    run(check())


def test_adapters_come_and_go(server: Server, tmp_path: Path) -> None:
    write_adapter(tmp_path / "loud")

    async def check() -> None:
        engine = engine_at(server, max_adapters=1)
        await engine.start()
        request = EngineRequest("plain", tuple(range(66, 90)), SamplingParams(max_tokens=12, temperature=0.0))

        async def tokens(adapter: str | None, number: int) -> tuple[int, ...]:
            mine = EngineRequest(f"r{number}", request.prompt_token_ids, request.sampling, adapter=adapter)
            return tuple([token async for part in engine.generate(mine) for token in part.token_ids])

        plain = await tokens(None, 0)
        with pytest.raises(EngineRequestError, match="loud"):
            await tokens("loud", 1)
        await engine.load_adapter("loud", str(tmp_path / "loud"))
        assert await engine.adapters() == ("loud",)
        assert await tokens("loud", 2) != plain
        assert await tokens(None, 3) == plain
        with pytest.raises(EngineRequestError):
            await engine.load_adapter("nowhere", str(tmp_path / "nowhere"))
        await engine.unload_adapter("loud")
        assert await engine.adapters() == ()
        with pytest.raises(EngineRequestError):
            await tokens("loud", 4)
        with pytest.raises(EngineRequestError):
            await engine.unload_adapter("loud")
        await engine.stop()

    run(check())


def test_sleep_and_wake(server: Server) -> None:
    async def check() -> None:
        assert await steer(server, "POST", "/sleep", {"level": 1}) == (200, {"sleeping": True})
        answer = asyncio.create_task(
            client(server).completions.create(model=server.model, prompt=[66] * 4, max_tokens=2)
        )
        await eventually(lambda: waiting(server, 1))
        assert not answer.done()
        assert await steer(server, "POST", "/wake") == (200, {"sleeping": False})
        assert (await answer).choices[0].finish_reason in {"length", "stop"}
        code, _ = await steer(server, "POST", "/sleep", {"level": 7})
        assert code == 400

    run(check())


def engine_at(server: Server, **options: str | int) -> VllmEngine:
    """An engine over this server."""
    given = {"mode": "server", "url": server.address.url, "api_key": server.address.api_key, **options}
    return VllmEngine(EngineSpec("vllm", server.model, options=given))
