"""`python -m execution.live.decode.trial JOB`: compile, try, prove and time decode steps in a process of its own.

What is wrong with a compiled step shows here first: a crash ends this process, not the server. Each finding is one
line of JSON on stdout, told before the next thing is begun, so that whoever reads knows what was at work when it
died. JOB is a file that `TrialJob.save` wrote.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from execution.compiler.port import CompileError, Recipe
from execution.compiler.verdict import Trial, Verdict, verdict_to_json


@dataclass(frozen=True, slots=True)
class TrialJob:
    """What to try."""

    model: str
    seed: int
    threads: int
    most_rows: int
    int8: bool
    rows: tuple[int, ...]
    """Sizes of a batch for which speed is asked."""
    recipes: tuple[Recipe, ...]
    folder: str
    """A folder for each recipe is made in it, by its number."""
    have: tuple[str, ...]
    """Folder of each recipe that is compiled already; empty: it is not."""
    cases: str = ""
    """File of recorded steps; empty: none."""
    prompts: tuple[tuple[int, ...], ...] = ()
    """Recorded prompts, for quality."""
    min_gain: float = 1.03
    backend: str = "execution.live.decode.backend:NativeBackend"
    niceness: int = 10

    def save(self, path: Path) -> None:
        """For the child."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> TrialJob:
        """What `save` wrote."""
        told = json.loads(path.read_text(encoding="utf-8"))
        recipes = tuple(
            Recipe(**{**r, "settings": tuple(map(tuple, r["settings"]))}) for r in told["recipes"]
        )
        lists = {name: tuple(told[name]) for name in ("rows", "have")}
        prompts = tuple(tuple(p) for p in told["prompts"])
        return cls(**{**told, **lists, "recipes": recipes, "prompts": prompts})


class _Teller:
    def __init__(self) -> None:
        self._began_s = time.monotonic()

    def __call__(self, what: str, **told: Any) -> None:
        line = {"what": what, "at_s": round(time.monotonic() - self._began_s, 3)} | told
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def run(job: TrialJob, tell: Callable[..., None]) -> None:
    """The first recipe to its end, so that something better serves soon; then the others."""
    import torch  # noqa: PLC0415 slow

    from execution.live.decode.bench import backend_of, open_bench, subject_of_job  # noqa: PLC0415

    torch.set_num_threads(job.threads)
    backend = backend_of(job.backend)
    bench = open_bench(job)
    subject = subject_of_job(job, bench.shape)
    tell("ready", key=subject.key)
    if job.int8:
        _quality(job, bench, tell)
    for number, recipe in enumerate(job.recipes):
        folder = Path(job.have[number]) if job.have[number] else Path(job.folder) / str(number)
        if not job.have[number]:
            tell("compiling", recipe=number)
            folder.mkdir(parents=True, exist_ok=True)
            began_s, began_cpu_s = time.monotonic(), _cpu_s()
            try:
                backend.compile(subject, recipe, folder)
            except (CompileError, OSError) as error:
                _refuse(tell, number, "compile", str(error))
                continue
            tell("compiled", recipe=number, folder=str(folder), seconds=time.monotonic() - began_s,
                 cpu_s=_cpu_s() - began_cpu_s)  # fmt: skip
        kernel = _tried(job, number, recipe, folder, tell)
        if kernel is not None:
            _race(job, number, kernel, tell)
    tell("done")


def _tried(job: TrialJob, number: int, recipe: Recipe, folder: Path, tell: Callable[..., None]) -> Any:
    from execution.live.decode.bench import backend_of, cases_of_job, open_bench, open_kernel, subject_of_job  # noqa: PLC0415
    from execution.live.decode.proof import check_numerics  # noqa: PLC0415

    tell("trying", recipe=number)
    bench = open_bench(job)
    began_s = time.monotonic()
    try:
        library = backend_of(job.backend).load(subject_of_job(job, bench.shape), recipe, folder)
        kernel = open_kernel(job, bench, library)
    except CompileError as error:
        _refuse(tell, number, "trial", str(error))
        return None
    cases = cases_of_job(job, bench)
    numerics = check_numerics(bench, kernel, cases)
    trial = Trial(
        True, "", len(cases), time.monotonic() - began_s, ("kv beside the rows", "a process of its own")
    )
    if not numerics.ok:
        verdict = Verdict(False, "numerics", numerics.reason, trial, numerics)
        tell("verdict", recipe=number, rows=0, verdict=verdict_to_json(verdict))
        return None
    tell("right", recipe=number, verdict=verdict_to_json(Verdict(True, "numerics", "right", trial, numerics)))
    return kernel


def _race(job: TrialJob, number: int, kernel: Any, tell: Callable[..., None]) -> None:
    """Against the original, for each size of a batch."""
    from execution.live.decode.bench import case_of_rows, open_bench  # noqa: PLC0415
    from execution.live.decode.proof import measure_speed  # noqa: PLC0415

    bench = open_bench(job)
    for rows in job.rows:
        case = case_of_rows(job, bench, rows)
        speed = measure_speed(
            bench, kernel, case, threads=job.threads, pairs=20, min_gain=job.min_gain, limit_s=4.0
        )
        verdict = Verdict(
            speed.ok, "accepted" if speed.ok else "speed", speed.reason or "faster", speed=speed
        )
        tell("verdict", recipe=number, rows=rows, verdict=verdict_to_json(verdict))


def _quality(job: TrialJob, bench: Any, tell: Callable[..., None]) -> None:
    from execution.live.decode.bench import original_weights, prompts_of_job  # noqa: PLC0415
    from execution.live.decode.quality import measure_quality  # noqa: PLC0415

    prompts = prompts_of_job(job, bench.shape)
    found = measure_quality(bench.shape, original_weights(job), bench.weights, bench.rotations, prompts)
    tell("quality", told=str(found), figures=asdict(found), recorded=bool(job.prompts))


def _refuse(tell: Callable[..., None], number: int, stage: str, reason: str) -> None:
    tell("verdict", recipe=number, rows=0, verdict=verdict_to_json(Verdict(False, stage, reason)))


def _cpu_s() -> float:
    told = os.times()
    return told.user + told.system + told.children_user + told.children_system


def main(arguments: Sequence[str]) -> int:
    """Work through a job."""
    job = TrialJob.load(Path(arguments[0]))
    os.nice(job.niceness)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            if job.niceness >= 19:
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # when the parent dies
    tell = _Teller()
    try:
        run(job, tell)
    except Exception as error:  # noqa: BLE001 whoever reads must be told
        tell("failed", reason=f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
