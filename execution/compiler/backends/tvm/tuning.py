"""The tuner's process: measures schedules of a subject's functions, and notes them in a database as it goes.

    main()      # of a process whose arguments are WORK_DIR TRIALS PARENT

WORK_DIR holds `subject.pickle`; records are appended to its database, so that a run that is cut short is not lost: the
next one goes on from there. Killing the process is the way to stop it: it leads its process group, and it and its
workers also die with their parents.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

RECORDS, WORKLOADS = "database_tuning_record.json", "database_workload.json"
SUBJECT = "subject.pickle"
SEED = 0
_PER_ROUND = 16


def main() -> None:
    """Tune, until the trials are used up."""
    folder, trials, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 19)
    subject = pickle.loads((folder / SUBJECT).read_bytes())  # noqa: S301 - written by our parent
    remaining = trials - measured(folder)
    if remaining > 0:
        tune(subject, folder, remaining)


def measured(folder: Path) -> int:
    """Records in the folder's database."""
    try:
        with (folder / RECORDS).open(encoding="utf-8") as lines:
            return sum(1 for _ in lines)
    except OSError:
        return 0


def tune(subject: Any, folder: Path, trials: int) -> None:
    """Measure so many schedules more."""
    from execution.compiler.backends.tvm import light  # noqa: PLC0415

    os.environ["TVM_NUM_THREADS"] = str(subject.threads)
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    light.install()
    from tvm.s_tir import meta_schedule  # noqa: PLC0415

    from execution.compiler.backends.tvm import artifact, graphs  # noqa: PLC0415

    target = artifact.target(subject.threads)
    module = graphs.lower(subject, target)
    clock = {"f_run_evaluator": light.run_by_cpu_time} if subject.threads == 1 else {}
    meta_schedule.relax_integration.tune_relax(
        module,
        {},
        target,
        str(folder),
        max_trials_global=trials,
        num_trials_per_iter=max(4, min(_PER_ROUND, trials // 4)),
        builder=meta_schedule.builder.LocalBuilder(
            max_workers=1, timeout_sec=60, initializer=light.begin_worker
        ),
        runner=meta_schedule.runner.LocalRunner(timeout_sec=60, initializer=light.begin_worker, **clock),
        cost_model="xgb" if _can_learn() else "random",
        seed=SEED,
    )


def _can_learn() -> bool:
    from importlib.util import find_spec  # noqa: PLC0415

    return find_spec("xgboost") is not None
