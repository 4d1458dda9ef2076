"""The tuner ends when it must, and what it did not measure is no kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from execution.compiler.backends.tvm import MetaSchedule, families  # noqa: E402
from execution.compiler.port import Bucket, CompileError  # noqa: E402

BACKEND_OR_WHY_NOT = MetaSchedule().unavailable()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BACKEND_OR_WHY_NOT is not None, reason=str(BACKEND_OR_WHY_NOT)),
]


def tuners(records: Path) -> list[int]:
    """Processes whose command names the folder of records."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes()
        except OSError:
            continue
        if str(records).encode() in command and int(place.name) != os.getpid():
            found.append(int(place.name))
    return found


def test_a_spent_budget_leaves_no_kernel_and_no_process(tmp_path: Path) -> None:
    backend = MetaSchedule(budget_s=0.05, records=tmp_path / "records")
    subject = families.swiglu(rows=Bucket(2, 2), inner=8)
    recipe = backend.recipes(subject)[0]
    with pytest.raises(CompileError, match=r"within 0\.05 s; untuned code is never offered"):
        backend.compile(subject, recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert tuners(tmp_path / "records") == []


def test_sigterm_ends_the_tuner_too(tmp_path: Path) -> None:
    text = f"""
import sys, threading
from pathlib import Path
from execution.compiler.backends.tvm import MetaSchedule, families
from execution.compiler.port import Bucket
backend = MetaSchedule(budget_s=600, records=Path({str(tmp_path)!r}))
subject = families.swiglu(rows=Bucket(2, 2), inner=8)
print("ready", flush=True)
backend.compile(subject, backend.recipes(subject)[0], Path({str(tmp_path / "out")!r}))
"""
    parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        while not any(pid != parent.pid for pid in tuners(tmp_path)):
            assert parent.poll() is None
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(300) != 0
        until_s = time.monotonic() + 300.0
        while tuners(tmp_path):  # it dies with its parent, by the kernel's hand, a moment later
            assert time.monotonic() < until_s
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.wait()


def test_a_graph_that_relax_does_not_read(tmp_path: Path) -> None:
    backend = MetaSchedule(budget_s=0.5, records=tmp_path)
    subject = families.swiglu(rows=Bucket(2, 2), inner=8, source=False)
    recipe = backend.recipes(families.swiglu(rows=Bucket(2, 2), inner=8))[0]
    with pytest.raises(CompileError, match="no source"):
        backend.compile(subject, recipe, tmp_path / "out")
