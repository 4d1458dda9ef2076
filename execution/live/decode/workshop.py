"""The parent's side of trial.py: runs the child, hears what it tells, and survives whatever it does.

A child that crashes or hangs is charged to the recipe that was at work; a new one goes on with the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from execution.compiler.verdict import Verdict, verdict_to_json
from execution.live.decode.trial import TrialJob

_ROOT = Path(__file__).resolve().parents[3]
_POLL_S = 0.2


class Workshop:
    """Works through jobs, one child at a time. `close` and `pause` may be called from any thread."""

    def __init__(self, folder: Path, *, step_limit_s: float = 600.0) -> None:
        """`folder`: for job files and what is compiled. `step_limit_s`: silence of a child that counts as a hang."""
        self._folder = folder
        self._limit_s = step_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = threading.Event()
        self._running = threading.Event()
        self._running.set()

    def run(self, job: TrialJob, meanwhile: Callable[[], None] = lambda: None) -> Iterator[dict[str, Any]]:
        """What the child tells, `recipe` by its number in the job; crashes come as verdicts. `meanwhile` is called some
        times a second."""
        left = list(range(len(job.recipes)))
        while left and not self._closed.is_set():
            part = replace(
                job, recipes=tuple(job.recipes[i] for i in left), have=tuple(job.have[i] for i in left),
                folder=str(self._folder / f"part-{len(job.recipes) - len(left)}-{time.monotonic_ns()}"),
            )  # fmt: skip
            at_work, stage, over = 0, "trial", False
            for told in self._child(part, meanwhile):
                line = dict(told)
                if "recipe" in line:
                    at_work = int(line["recipe"])
                    line["recipe"] = left[at_work]
                if line["what"] != "died":
                    stage = "compile" if line["what"] == "compiling" else "trial"
                over = over or line["what"] in {"done", "failed"}
                if line["what"] == "died" and self._closed.is_set():
                    return
                if line["what"] == "died":
                    reason = f"{line['reason']} while it was {'compiled' if stage == 'compile' else 'tried'}"
                    verdict = verdict_to_json(Verdict(False, stage, reason))
                    yield {"what": "verdict", "recipe": left[at_work], "rows": 0, "verdict": verdict}
                    continue
                yield line
            if over:
                return
            left = left[at_work + 1 :]

    def pause(self) -> None:
        """Halt the child at once."""
        self._running.clear()
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        self._signal(signal.SIGCONT)
        self._running.set()

    def close(self) -> None:
        """End the child; idempotent."""
        self._closed.set()
        self._signal(signal.SIGKILL)

    def _child(self, job: TrialJob, meanwhile: Callable[[], None]) -> Iterator[dict[str, Any]]:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"job-{time.monotonic_ns()}.json"
        job.save(path)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
            "OMP_NUM_THREADS": str(job.threads),
        }
        with (self._folder / "errors.txt").open("ab") as errors:
            # a group, not a session: Linux gives each session a share of the processor of its own, where niceness
            # among processes of one session only would count
            process = subprocess.Popen(  # noqa: S603 our own module, no shell
                [sys.executable, "-P", "-m", "execution.live.decode.trial", str(path)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment, process_group=0,
            )  # fmt: skip
        self._process = process
        try:
            yield from self._lines(process, meanwhile)
        finally:
            self._signal(signal.SIGKILL)
            process.wait()
            self._process = None
            if process.stdout is not None:
                process.stdout.close()
            path.unlink(missing_ok=True)

    def _lines(
        self, process: subprocess.Popen[bytes], meanwhile: Callable[[], None]
    ) -> Iterator[dict[str, Any]]:
        stdout = process.stdout
        if stdout is None:
            return
        buffer, silent_s, before_s = b"", 0.0, time.monotonic()
        while not self._closed.is_set():
            meanwhile()
            now_s = time.monotonic()
            silent_s += now_s - before_s if self._running.is_set() else 0.0
            before_s = now_s
            if silent_s > self._limit_s:
                yield {"what": "died", "reason": f"it hung: {self._limit_s:.0f} s without a word"}
                return
            if not select.select([stdout], [], [], _POLL_S)[0]:
                continue
            read = os.read(stdout.fileno(), 1 << 16)
            if not read:
                yield from self._end(process)
                return
            silent_s, buffer = 0.0, buffer + read
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                with contextlib.suppress(ValueError):  # what a compiler or a library printed
                    told = json.loads(line)
                    if isinstance(told, dict) and "what" in told:
                        yield told

    def _end(self, process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
        code = process.wait()
        if code < 0:
            with contextlib.suppress(ValueError):
                yield {"what": "died", "reason": f"the process was killed by {signal.Signals(-code).name}"}
                return
        if code:
            yield {"what": "died", "reason": f"the process ended with code {code}"}

    def _signal(self, number: int) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
