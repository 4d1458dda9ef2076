"""The back end `metaschedule`: schedules found by measuring (Shao et al., 2022), for graphs that no template knows.

    backend = MetaSchedule(budget_s=90)
    backend.recipes(subject)                    # `metaschedule 32 trials`, `... 64 trials`
    backend.compile(subject, recipe, folder)    # tunes in processes of its own, then builds

Subjects are those that tvm.relax reads from an exported program: fixed shapes (a bucket of one size). What was measured is
kept in a database of the user's cache directory and goes on from there next time. A function for which nothing was
measured in time is never built: TVM's untuned code can be hundreds of times slower than eager.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from execution.compiler.backends.tvm import artifact, tuning
from execution.compiler.backends.tvm.artifact import Told
from execution.compiler.backends.tvm.backend import installed, missing
from execution.compiler.backends.tvm.cpu import Cpu, detect
from execution.compiler.backends.tvm.graphs import Call, Lowered
from execution.compiler.cache import default_root
from execution.compiler.port import CompileError, Recipe, Subject, Tensor

VERSION = 1
TRIALS = (32, 64)
PLAN = "plan.json"
_KINDS = ("float32", "int32", "int64", "int8", "uint8", "bool")
_WITHOUT = ("decode_attention",)
"""Families that the frontend reads, but builds kernels of that no tuning makes good."""
_ALIGNED = 64
"""Bytes; as TVM takes for granted of all tensors."""
_NAP_S, _GRACE_S = 0.2, 2.0


class TunedKernel:
    """A loaded artifact: functions called one after the other."""

    def __init__(self, functions: Mapping[str, Any], calls: Sequence[Call], results: Sequence[int]) -> None:
        import torch  # noqa: PLC0415

        self._steps = [(functions[c.function], c.arguments, c.shape, getattr(torch, c.dtype)) for c in calls]
        self._results = tuple(results)
        self._empty = torch.empty

    def prepare(self, params: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The weights as they are."""
        return tuple(param.detach().contiguous() for param in params)

    def __call__(self, *arguments: Tensor) -> Any:
        """Inputs, then weights."""
        values = [_as_tuned(a) for a in arguments]
        for function, wanted, shape, dtype in self._steps:
            made = self._empty(shape, dtype=dtype)
            function(*(values[i] for i in wanted), made)
            values.append(made)
        if len(self._results) == 1:
            return values[self._results[0]]
        return tuple(values[i] for i in self._results)


def _as_tuned(tensor: Tensor) -> Tensor:
    """Contiguous, and where vectors may be loaded from."""
    whole = tensor.contiguous()
    return whole if whole.data_ptr() % _ALIGNED == 0 else whole.clone()


class MetaSchedule:
    """MetaSchedule, as a Backend."""

    name = "metaschedule"

    def __init__(self, budget_s: float = 120.0, records: Path | None = None, cpu: Cpu | None = None) -> None:
        """`budget_s`: of tuning, for one compile. `records`: where databases are kept."""
        self._budget_s = budget_s
        self._records = records
        self._cpu = cpu or detect()

    def unavailable(self) -> str | None:
        """As of the templates; also without what the tuner needs."""
        lacking = missing()
        if lacking is not None:
            return lacking
        for module in ("cloudpickle", "psutil"):
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed, which MetaSchedule needs: pip install {module}"
        return None

    def versions(self) -> Mapping[str, str]:
        """Of TVM, and what is known of the processor."""
        return {**installed(), "metaschedule": str(VERSION), "processor": self._cpu.fingerprint}

    def refusal(self, subject: Subject) -> str | None:
        """Why there is no recipe for the subject; None: there is one."""
        if subject.device != "cpu":
            return f"it tunes for cpu, not {subject.device}"
        if subject.op in _WITHOUT:
            return f"{subject.op}: lengths vary from call to call, tuned kernels have fixed shapes"
        if not subject.source:
            return "there is no source to read"
        if subject.bucket.least != subject.bucket.most:
            return f"bucket {subject.bucket}: tuned kernels have fixed shapes"
        kinds = {spec.dtype for spec in (*subject.inputs, *subject.params)} - set(_KINDS)
        return f"no {', '.join(sorted(kinds))}" if kinds else None

    def recipes(self, subject: Subject) -> Sequence[Recipe]:
        """By number of trials."""
        if self.refusal(subject) is not None:
            return ()
        return [
            Recipe(self.name, f"metaschedule {n} trials", (("trials", n),), "", 20.0 + 1.2 * n)
            for n in TRIALS
        ]

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        """Tune for as long as the budget allows, then build the best that was measured."""
        refused = self.unavailable() or self.refusal(subject)
        if refused is not None:
            raise CompileError(f"metaschedule: cannot compile {subject.op}: {refused}")
        trials = int(dict(recipe.settings)["trials"])
        work = self._work_dir(subject)
        with _alone(work):
            (work / tuning.SUBJECT).write_bytes(pickle.dumps(subject))
            _tuned(work, trials, self._budget_s)
            functions, lowered = _best(subject, work)
        told = Told(
            artifact.FORMAT,
            subject.op,
            recipe.name,
            {"trials": trials},
            subject.threads,
            self._cpu.fingerprint,
        )
        artifact.write_module(functions, told, folder, team=True)
        plan = {"calls": [asdict(call) for call in lowered.calls], "results": lowered.results}
        (folder / PLAN).write_text(json.dumps(plan), encoding="utf-8")

    def load(self, subject: Subject, recipe: Recipe, folder: Path) -> TunedKernel:
        """The kernel of the folder."""
        told = artifact.told_of(folder)
        if told.op != subject.op or told.recipe != recipe.name:
            raise CompileError(f"metaschedule: {folder} holds {told.op}, {told.recipe}; not {recipe.name}")
        try:
            plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
            calls = [
                Call(c["function"], tuple(c["arguments"]), tuple(c["shape"]), c["dtype"])
                for c in plan["calls"]
            ]
            results = [int(n) for n in plan["results"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CompileError(f"metaschedule: {folder / PLAN} is not a plan: {error}") from error
        functions = artifact.read(folder, self._cpu, [c.function for c in calls], runtime=True)
        return TunedKernel(functions, calls, results)

    def _work_dir(self, subject: Subject) -> Path:
        base = self._records or default_root().parent / "metaschedule"
        text = json.dumps([subject.key, dict(self.versions())]).encode() + subject.source
        work = base / hashlib.sha256(text).hexdigest()[:24]
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CompileError(f"metaschedule: no room for records in {base}: {error}") from error
        return work


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """One tuner for one database. Raises CompileError when another one is at it."""
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CompileError(f"metaschedule: another process is tuning in {work}") from error
        yield


def _tuned(work: Path, trials: int, budget_s: float) -> None:
    """Run the tuner until it is done or the budget is spent; nothing of it is left running, whatever happens."""
    if tuning.measured(work) >= trials:
        return
    start = f"from {tuning.__name__} import main; main()"
    command = [sys.executable, "-P", "-c", start, str(work), str(trials), str(os.getpid())]
    with (work / "tuning.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
        )
        ends_s = time.monotonic() + budget_s
        with _terminable():
            try:
                while process.poll() is None and time.monotonic() < ends_s:
                    time.sleep(_NAP_S)
            finally:
                _end(process)
    if tuning.measured(work) == 0 and process.returncode in {0, -signal.SIGTERM, -signal.SIGKILL}:
        raise CompileError(
            f"metaschedule: nothing was measured within {budget_s:g} s; untuned code is never offered"
        )
    if process.returncode not in {0, -signal.SIGTERM, -signal.SIGKILL}:
        raise CompileError(f"metaschedule: the tuner failed: {_last_line(work / 'tuning.log')}")


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM becomes an exception meanwhile, so that the tuner's group is ended first."""

    def stop(_number: int, _frame: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: then the tuner ends with its parent
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The whole group; also when its leader is gone already."""
    for number, patience_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GRACE_S)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _best(subject: Subject, work: Path) -> tuple[Any, Lowered]:
    """The functions of the subject, each by the best schedule that was measured."""
    from execution.compiler.backends.tvm import light  # noqa: PLC0415

    light.install()
    import tvm  # noqa: PLC0415
    from tvm import relax  # noqa: PLC0415
    from tvm.s_tir import meta_schedule  # noqa: PLC0415

    from execution.compiler.backends.tvm import graphs  # noqa: PLC0415

    target = artifact.target(subject.threads)
    module = graphs.lower(subject, target)
    lowered = graphs.straight_line(module)
    database = meta_schedule.database.JSONDatabase(work_dir=str(work))
    for task in meta_schedule.relax_integration.extract_tasks(module, target, {}):
        found = database.has_workload(task.dispatched[0])
        if not found or not database.get_top_k(database.commit_workload(task.dispatched[0]), 1):
            raise CompileError(
                f"metaschedule: {task.task_name} was not measured within the budget; untuned code is never offered"
            )
    with target:
        module = relax.transform.MetaScheduleApplyDatabase(str(work))(module)
    functions = {}
    for variable, function in module.functions.items():
        if isinstance(function, tvm.tirx.PrimFunc):
            functions[variable.name_hint] = function.with_attr("global_symbol", variable.name_hint)
    return tvm.IRModule(functions), lowered


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
