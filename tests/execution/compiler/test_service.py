"""The service end to end with real processes: what is good is accepted, each fault is caught where it shows."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from execution.compiler.budget import Budget  # noqa: E402
from execution.compiler.cache import ArtifactCache  # noqa: E402
from execution.compiler.events import Accepted, Compiling, Event, Finished, NotACandidate, Refused  # noqa: E402
from execution.compiler.port import CompileError, Subject  # noqa: E402
from execution.compiler.service import CompilerService, Demand, Samples  # noqa: E402
from tests.execution.compiler import faulty, subjects  # noqa: E402

pytestmark = pytest.mark.slow
BUDGET = Budget(cpu_s_per_minute=6000, priority="low", memory_bytes=3 << 30, idle_s=600, trial_limit_s=600.0)


@pytest.fixture(scope="module")
def call() -> subjects.Call:
    return subjects.doubled()


@pytest.fixture(scope="module")
def subject(call: subjects.Call) -> Subject:
    return call.subject()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ArtifactCache:
    return ArtifactCache(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture(scope="module")
def serve(cache: ArtifactCache) -> Iterator[Callable[..., CompilerService]]:
    """One service with all back ends; its helpers are used by all tests."""
    names = [n for n, c in vars(faulty).items() if isinstance(c, type) and issubclass(c, faulty.Good)]
    services = [
        CompilerService(
            cache, backends=[f"tests.execution.compiler.faulty:{n}" for n in names], budget=BUDGET
        )
    ]
    yield lambda: services[0]
    services[0].close()


def work(
    service: CompilerService,
    subject: Subject,
    call: subjects.Call,
    names: list[str],
    demand: Demand | None = None,
) -> list[Event]:
    recipes = [r for b in map(getattr, [faulty] * len(names), names) for r in b().recipes(subject)]
    return list(
        service.best_sync(subject, Samples((call.inputs,), call.params), recipes=recipes, demand=demand)
    )


def one(events: list[Event], kind: type) -> Event:
    (found,) = (e for e in events if isinstance(e, kind))
    return found


CAUGHT = {
    "CompileFails": ("compile", "this cannot be compiled"),
    "CompileSegfaults": ("compile", "SIGSEGV"),
    "CompileFillsDisk": ("compile", "too large"),
    "LoadSegfault": ("trial", "SIGSEGV during load"),
    "Segfault": ("trial", "SIGSEGV during guarded"),
    "WritesInput": ("trial", "input 0 was written to"),
    "WritesBeyondInput": ("trial", "SIGSEGV during guarded"),
    "ReadsBeyondInput": ("trial", "SIGSEGV during guarded"),
    "GivesInput": ("trial", "shares memory"),
    "GivesSameOutput": ("trial", "shares memory"),
    "Glutton": ("trial", "memory"),
    "Raises": ("trial", "ZeroDivisionError"),
    "GivesNan": ("numerics", "nan where"),
    "HidesNan": ("numerics", "nan, element"),
    "SlightlyWrong": ("numerics", "wrong beyond 16 eps"),
    "LessExact": ("numerics", "typical error"),
    "LastRowWrong": ("numerics", "element [7, 32]"),
    "WrongShape": ("numerics", "gives (8, 32)"),
    "Random": ("determinism", "other bits"),
    "Slow": ("speed", "gain is not above"),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_each_fault_is_caught_where_it_shows(
    serve: Callable[[], CompilerService], subject: Subject, call: subjects.Call, name: str
) -> None:
    stage, words = CAUGHT[name]
    refused = one(work(serve(), subject, call, [name]), Refused)
    assert isinstance(refused, Refused)
    assert refused.verdict.stage == stage, refused.verdict.reason
    assert words in refused.verdict.reason
    assert not refused.cached
    assert refused.verdict.explain().startswith(f"refused at {stage}")


def test_an_overrun_of_an_output_is_caught_where_the_heap_can_be_checked(
    serve: Callable[[], CompilerService], subject: Subject, call: subjects.Call
) -> None:
    if not serve()._search.heap_check:
        pytest.skip("the C library here has no libc_malloc_debug.so.0")
    refused = one(work(serve(), subject, call, ["WritesBeyondOutput"]), Refused)
    assert isinstance(refused, Refused)
    assert refused.verdict.stage in ("trial", "numerics")
    assert "SIGABRT" in refused.verdict.reason


def test_a_hang_in_native_code_is_killed(cache: ArtifactCache, subject: Subject, call: subjects.Call) -> None:
    budget = Budget(cpu_s_per_minute=6000, priority="low", trial_limit_s=12.0)
    service = CompilerService(cache, backends=["tests.execution.compiler.faulty:Hang"], budget=budget)
    try:
        refused = one(work(service, subject, call, ["Hang"]), Refused)
        assert isinstance(refused, Refused)
        assert "hung: not done after 12 s" in refused.verdict.reason
        again = one(
            work(service, subject, call, ["Hang"]), Refused
        )  # may do better in another hour: not stored
        assert isinstance(again, Refused)
        assert not again.cached
    finally:
        service.close()


def test_the_good_one_is_accepted_loaded_and_known_after_a_restart(
    serve: Callable[[], CompilerService], cache: ArtifactCache, subject: Subject, call: subjects.Call
) -> None:
    events = work(serve(), subject, call, ["Slow", "Fast"])
    accepted, finished = one(events, Accepted), events[-1]
    assert isinstance(accepted, Accepted)
    assert isinstance(finished, Finished)
    assert finished.best is accepted
    assert not accepted.cached
    assert accepted.recipe.backend == "fast"
    verdict = accepted.verdict
    assert verdict.speed is not None
    assert verdict.speed.ratio > 1.03
    assert verdict.numerics is not None
    assert verdict.trial is not None
    assert "fenced inputs and weights" in verdict.trial.guarded
    assert verdict.deterministic
    kernel = accepted.load()
    assert torch.equal(kernel(*call.inputs, *kernel.prepare(call.params)), call.inputs[0] * 2)

    again = CompilerService(cache, backends=["tests.execution.compiler.faulty:Fast"], budget=BUDGET)
    try:
        known = again.known(subject)
        assert known is not None
        assert known.cached
        assert known.verdict == verdict
        events = work(again, subject, call, ["Fast"])
        assert [type(e) for e in events] == [Accepted, Finished]
        assert again._background.pids() == []  # nothing was compiled or tried
        assert torch.equal(known.load()(*call.inputs), call.inputs[0] * 2)
    finally:
        again.close()


def test_a_refusal_is_remembered(
    serve: Callable[[], CompilerService], subject: Subject, call: subjects.Call
) -> None:
    work(serve(), subject, call, ["GivesNan"])
    events = work(serve(), subject, call, ["GivesNan"])
    assert not any(isinstance(e, Compiling) for e in events)
    refused = one(events, Refused)
    assert isinstance(refused, Refused)
    assert refused.cached
    assert refused.verdict.numerics is not None
    assert "nan where" in refused.verdict.reason


def test_other_versions_and_a_damaged_artifact_are_worked_out_anew(
    serve: Callable[[], CompilerService],
    subject: Subject,
    call: subjects.Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = one(work(serve(), subject, call, ["Fast"]), Accepted)
    assert isinstance(first, Accepted)
    (first.folder / "code").write_text("fasT")
    with pytest.raises(CompileError, match="damaged"):
        first.load()
    events = work(serve(), subject, call, ["Fast"])
    assert any(isinstance(e, Compiling) for e in events)
    accepted = one(events, Accepted)
    assert isinstance(accepted, Accepted)
    monkeypatch.setenv("FAULTY_VERSION", "2")
    assert serve().known(subject) is None


def test_who_is_not_faster_than_the_best_is_refused_but_known(
    serve: Callable[[], CompilerService], subject: Subject, call: subjects.Call
) -> None:
    events = work(serve(), subject, call, ["Fast", "Good"])
    accepted = [e for e in events if isinstance(e, Accepted)]
    refused = [e for e in events if isinstance(e, Refused)]
    assert len(accepted) >= 1
    assert {e.recipe.backend for e in accepted} | {e.recipe.backend for e in refused} == {"fast", "good"}
    for event in refused:
        assert event.verdict.stage == "speed"


def test_a_backend_that_is_not_there_is_no_candidate(
    serve: Callable[[], CompilerService], subject: Subject, call: subjects.Call
) -> None:
    told = [e for e in work(serve(), subject, call, []) if isinstance(e, NotACandidate)]
    assert ("tests.execution.compiler.faulty:Missing", "it is not installed") in {
        (e.backend, e.reason) for e in told
    }


def test_awaited_and_cancelled(
    serve: Callable[[], CompilerService], subject: Subject, call: subjects.Call
) -> None:
    async def ask() -> tuple[list[Event], Event]:
        samples = Samples((call.inputs,), call.params)
        recipes = faulty.GivesNan().recipes(subject)
        events = [e async for e in serve().best(subject, samples, recipes=recipes)]
        waits = serve().best(subject, samples, recipes=faulty.CompileWaits().recipes(subject))
        first = await anext(waits)
        await waits.aclose()
        return events, first

    events, first = asyncio.run(ask())
    assert isinstance(events[-1], Finished)
    assert isinstance(first, Compiling | NotACandidate)
    assert [type(e) for e in work(serve(), subject, call, ["GivesNan"])][-2:] == [
        Refused,
        Finished,
    ]  # free again


def test_a_full_disk_keeps_the_original(subject: Subject, call: subjects.Call, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a small file system here")
    service = None
    try:
        cache = ArtifactCache(small / "cache")
        (small / "filler").write_bytes(b"x" * (256 * 1024 - small.stat().st_blksize * 6 - 40960))
        service = CompilerService(cache, backends=["tests.execution.compiler.faulty:Fast"], budget=BUDGET)
        while True:
            try:
                (small / f"filler {len(list(small.iterdir()))}").write_bytes(b"x" * 4096)
            except OSError:
                break
        events = work(service, subject, call, ["Fast"])
        refused, finished = one(events, Refused), events[-1]
        assert isinstance(refused, Refused)
        assert isinstance(finished, Finished)
        assert finished.best is None
        assert "No space left" in refused.verdict.reason
    finally:
        if service is not None:
            service.close()
        subprocess.run(["umount", str(small)], check=False)


HELP = "import sys, execution.compiler.service; print('torch' in sys.modules, 'tvm' in sys.modules)"


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.split() == ["False", "False"]
