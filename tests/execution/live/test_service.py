"""The whole on a live engine: it evolves under load, answers stay what they were, and whatever goes wrong is taken back."""

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from execution.compiler.cache import ArtifactCache
from execution.compiler.machine import this_machine
from execution.compiler.port import Bucket
from execution.engines.torch import TorchEngine
from execution.live.decode.unit import DecodeSettings
from execution.live.journal import FileJournal
from execution.live.module_rounds import ModuleSettings
from execution.live.service import EvolutionSettings, ExecutionEvolution
from execution.live.swap import Check
from execution.live.variants import Table, Variant
from loop.contracts.engine import EngineRequest, EngineSpec, SamplingParams
from tests.execution.live.conftest import needs_compiler

pytestmark = [pytest.mark.slow, needs_compiler]
MODEL, STREAMS = "micro-llama", 3
SETTINGS = EvolutionSettings(
    observe_steps=20,
    place_pairs=4,
    place_limit_s=5.0,
    watch_every_s=0.05,
    min_gain_in_place=0.01,
    modules=ModuleSettings(most=0),
)
_LIMIT_S = 1200.0
Entry = dict[str, Any]


class Run:
    """An engine under load, and its evolution."""

    def __init__(self, engine: TorchEngine, evolution: ExecutionEvolution, journal: FileJournal) -> None:
        self.engine, self.evolution, self.journal = engine, evolution, journal
        self.answers: dict[int, set[tuple[int, ...]]] = {}

    def of(self, event: str) -> list[Entry]:
        return [entry for entry in list(self.journal.entries) if entry["event"] == event]

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(_LIMIT_S):
            while not what():
                assert not self.evolution.state.startswith("ended"), self.evolution.state
                await asyncio.sleep(0.01)


def live(
    folder: Path,
    story: Callable[[Run], Any],
    *,
    backend: str = "tests.execution.live.faulty:Honest",
    cache: ArtifactCache | None = None,
    settings: EvolutionSettings = SETTINGS,
    **options: str | float | bool,
) -> Run:
    """Serve streams that never stop while `story` goes on; every answer is kept."""

    async def main() -> Run:
        given = {"threads": 1, "max_lanes": 8, "kv_memory_bytes": 2**24, **options}
        engine = TorchEngine(EngineSpec("torch", MODEL, options=given))
        await engine.start()
        journal = FileJournal(folder / "journal.jsonl")
        decode = DecodeSettings(
            MODEL, 0, 1, recipes=1, backend=backend, min_gain=0.01, step_limit_s=900.0, niceness=0
        )
        evolution = ExecutionEvolution.of(
            engine, decode, cache=cache or ArtifactCache(folder / "cache"), journal=journal, settings=settings
        )
        run = Run(engine, evolution, journal)
        stop = asyncio.Event()

        async def stream(number: int) -> None:
            asked = 0
            while not stop.is_set():
                asked += 1
                prompt = tuple(range(number, number + 30))
                sampling = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
                tokens: list[int] = []
                async for output in engine.generate(EngineRequest(f"{number}-{asked}", prompt, sampling)):
                    tokens += output.token_ids
                run.answers.setdefault(number, set()).add(tuple(tokens))

        streams = [asyncio.create_task(stream(number)) for number in range(STREAMS)]
        try:
            evolution.start()
            await story(run)
            await run.until(lambda: len(run.answers) == STREAMS)
        finally:
            stop.set()
            await asyncio.gather(*streams)
            await asyncio.to_thread(evolution.close)
            await engine.stop()
        return run

    return asyncio.run(main())


def unchanged(run: Run) -> bool:
    """Each prompt had one answer, whoever computed it."""
    return len(run.answers) == STREAMS and all(len(found) == 1 for found in run.answers.values())


async def evolved(run: Run) -> None:
    await run.until(lambda: run.evolution.state == "watching")


def test_it_evolves_under_load_is_recalled_by_the_next_and_taken_back_when_asked(tmp_path: Path) -> None:
    async def first(run: Run) -> None:
        await evolved(run)
        assert run.evolution.report()["in_force"], list(run.journal.entries)
        await asyncio.to_thread(run.evolution.swap_back)
        assert run.evolution.report()["in_force"] == {}
        await asyncio.to_thread(run.evolution.swap_in)
        assert run.evolution.report()["in_force"]

    run = live(tmp_path, first)
    assert unchanged(run)
    assert run.of("swapped")
    assert run.of("right")
    assert not run.of("swapped-back")[1:]

    async def second(again: Run) -> None:
        await again.until(lambda: bool(again.of("recalled")))
        await evolved(again)

    again = live(tmp_path, second)
    assert again.of("cache-hit")
    assert not again.of("compiling")
    assert again.answers == run.answers

    async def elsewhere(other: Run) -> None:
        await other.until(lambda: bool(other.of("compiled")))

    machine = replace(this_machine(), flags="another processor")
    moved = live(tmp_path, elsewhere, cache=ArtifactCache(tmp_path / "cache", machine=machine))
    assert not moved.of("cache-hit")

    entry = next(iter((tmp_path / "cache" / "entries").rglob("decode.so")))
    for path in (tmp_path / "cache" / "entries").rglob("decode.so"):
        torn = path.with_name(
            "torn"
        )  # another file: this process has the old one mapped, and runs it at its exit
        torn.write_bytes(path.read_bytes()[:-7] + b"garbage")
        torn.replace(path)
    assert entry.is_file()
    damaged = live(tmp_path, elsewhere)
    assert not damaged.of("cache-hit")
    assert unchanged(damaged)


@pytest.mark.parametrize(("name", "reason"), [("WrongResult", "wrong result"), ("CrashesWhenRun", "SIGSEGV")])
def test_what_fails_its_trial_never_serves(name: str, reason: str, tmp_path: Path) -> None:
    run = live(tmp_path, evolved, backend=f"tests.execution.live.faulty:{name}")
    assert unchanged(run)
    assert not run.of("swapped")
    assert reason in run.of("refused")[0]["reason"]


def test_what_goes_wrong_later_is_noticed_in_place_and_nobody_is_harmed(tmp_path: Path) -> None:
    async def story(run: Run) -> None:
        await run.until(lambda: run.evolution.guard is not None)
        guard = run.evolution.guard
        assert guard is not None

        def throwing(rows: Any) -> Any:
            raise RuntimeError("worn out")

        variant = Variant("bad", Bucket(1, 8), throwing)
        await asyncio.wrap_future(
            run.engine.between_steps(lambda _: guard.exchange(Table.of(dict.fromkeys(range(1, 9), variant))))
        )
        await run.until(lambda: any("worn out" in e["reason"] for e in run.of("swapped-back")))
        await evolved(run)

    run = live(tmp_path, story, backend="tests.execution.live.faulty:RefusesToCompile")
    assert unchanged(run)


def test_a_slow_down_of_the_decode_step_is_seen_while_compilers_of_modules_are_waited_for(
    tmp_path: Path,
) -> None:
    backends = ("tests.execution.live.faulty:NeverDone",)
    modules = ModuleSettings(
        most=1, later=1, look_again_s=0.1, samples=1, least_share=0.0, backends=backends, priority="normal"
    )

    async def story(run: Run) -> None:
        await run.until(lambda: run.evolution.state.startswith("compiling layers"))
        guard = run.evolution.guard
        assert guard is not None
        variant = guard.table.pick(STREAMS)
        assert variant is not None, list(run.journal.entries)
        times = [(2e-3 + 1e-5 * (number % 5), 1e-3 + 1e-5 * (number % 3)) for number in range(24)]

        def seen(_: Any) -> None:
            guard.checks.extend(Check(variant, STREAMS, 0.0, 1.0, ours_s, its_s) for ours_s, its_s in times)

        await asyncio.wrap_future(run.engine.between_steps(seen))
        await run.until(lambda: bool(run.of("swapped-back")))
        assert "slow-down" in run.of("swapped-back")[0]["reason"]
        await run.until(lambda: guard.table.pick(STREAMS) is not variant)
        assert run.evolution.state.startswith("compiling layers")

    run = live(tmp_path, story, settings=replace(SETTINGS, modules=modules))
    assert unchanged(run)
    assert not run.of("searched")


def test_without_room_on_the_disk_it_serves_what_it_found_and_says_so(tmp_path: Path) -> None:
    run = live(tmp_path, evolved, cache=ArtifactCache(tmp_path / "cache", max_bytes=10))
    assert unchanged(run)
    assert run.of("swapped")
    assert "more than it may hold" in run.of("cache-failed")[0]["reason"]


def test_a_model_that_is_not_covered_is_served_as_it_is(tmp_path: Path) -> None:
    run = live(tmp_path, evolved, dtype="bfloat16")
    assert unchanged(run)
    assert "bfloat16" in run.of("refused")[0]["reason"]
    shutil.rmtree(tmp_path / "cache")
