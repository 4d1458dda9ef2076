"""A compiled kernel in a folder: written with TVM, read without it.

    kernel.so      the function `main`, and a launcher for its parallel loops
    kernel.json    what it is, for which processor
    kernel.tir     what it was made of, for people

Reading takes `tvm_ffi` alone (a tenth of a second to import, where `tvm` takes two). Parallel loops run on the team of
OpenMP threads that torch itself uses (GNU's libgomp), where torch has it: two pools of threads on the same cores would
wait for each other. Elsewhere they run on TVM's own pool.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from execution.compiler.backends.tvm import pipeline
from execution.compiler.backends.tvm.cpu import Cpu
from execution.compiler.port import CompileError, Setting

LIBRARY, TOLD, SOURCE = "kernel.so", "kernel.json", "kernel.tir"
FORMAT = 1
ENTRY = "main"
"""The function of a template's artifact."""
_SLOT = "__TVMBackendParallelLaunch"
_LAUNCHER = "autopoiesis_launch"
_LAUNCHER_SOURCE = """
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
typedef struct { void* handle; int32_t tasks; } Env;
typedef int (*Task)(int, Env*, void*);
typedef struct { Task task; void* data; int tasks; int failed; } Job;
__attribute__((weak)) void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned);
__attribute__((weak)) int omp_get_thread_num(void);
__attribute__((weak)) int omp_get_num_threads(void);
static void share(void* given) {
  Job* job = (Job*)given;
  Env env = {0, job->tasks};
  int team = omp_get_num_threads();
  for (int i = omp_get_thread_num(); i < job->tasks; i += team)
    if (job->task(i, &env, job->data)) job->failed = -1;
}
int autopoiesis_has_team(void) { return GOMP_parallel && omp_get_thread_num && omp_get_num_threads; }
int autopoiesis_launch(Task task, void* data, int tasks) {
  Job job = {task, data, tasks ? tasks : THREADS, 0};
  GOMP_parallel(share, &job, THREADS, 0);
  return job.failed;
}
#ifdef __cplusplus
}
#endif
"""


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of an artifact."""

    format: int
    op: str
    recipe: str
    settings: dict[str, Setting]
    threads: int
    """Of its parallel loops; 1: it has none."""
    processor: str


def write(function: Any, told: Told, folder: Path) -> None:
    """Compile a template's TIR function into the folder. Raises CompileError."""
    import tvm  # noqa: PLC0415

    write_module(
        tvm.IRModule({ENTRY: function}), told, folder, lowering=pipeline.registered(), team=told.threads != 1
    )


def write_module(module: Any, told: Told, folder: Path, *, lowering: str = "default", team: bool) -> None:
    """Compile TIR functions into the folder. `team`: whether they have parallel loops. Raises CompileError."""
    import tvm  # noqa: PLC0415

    os.environ.setdefault("TVM_BIND_THREADS", "0")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SOURCE).write_text(module.script(), encoding="utf-8")
    launcher = folder / "launcher.c"
    try:
        built = tvm.compile(module, target=target(told.threads), tir_pipeline=lowering)
        options = ["-O2"]
        if team:
            launcher.write_text(_LAUNCHER_SOURCE, encoding="utf-8")
            options += [f"-DTHREADS={told.threads}", str(launcher)]
        built.export_library(str(folder / LIBRARY), options=options)
    except Exception as error:  # TVM raises what it likes, its own InternalError included
        raise CompileError(f"tvm: {told.op}, {told.recipe}: {_first_line(error)}") from error
    finally:
        launcher.unlink(missing_ok=True)
    (folder / TOLD).write_text(json.dumps(asdict(told), indent=1), encoding="utf-8")


def read(
    folder: Path, cpu: Cpu, names: Sequence[str] = (ENTRY,), *, runtime: bool = False
) -> dict[str, Callable[..., Any]]:
    """The functions of a folder. `runtime`: they ask TVM's for memory. Raises CompileError where they cannot run."""
    told = told_of(folder)
    if told.processor != cpu.fingerprint:
        raise CompileError(f"tvm: {folder} was compiled for {told.processor!r}, this is {cpu.fingerprint!r}")
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    try:
        import tvm_ffi  # noqa: PLC0415

        path = str((folder / LIBRARY).resolve())
        team = _team_of(path)
        if runtime or team == _Team.ABSENT:
            _tvm_runtime()
        module = tvm_ffi.load_module(path)
        if team == _Team.PRESENT:
            _launch_on_team(path)
        return {name: module[name] for name in names}
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError) as error:
        raise CompileError(f"tvm: {folder / LIBRARY} cannot be loaded: {_first_line(error)}") from error


def target(threads: int) -> Any:
    """What TVM compiles for: this processor, by LLVM's own knowledge of it."""
    import tvm  # noqa: PLC0415
    from tvm.target import codegen  # noqa: PLC0415

    return tvm.target.Target(
        {"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu(), "num-cores": max(1, threads)}
    )


def told_of(folder: Path) -> Told:
    """What the folder says of itself. Raises CompileError."""
    try:
        fields: Mapping[str, Any] = json.loads((folder / TOLD).read_text(encoding="utf-8"))
        told = Told(**fields)
    except (OSError, ValueError, TypeError) as error:
        raise CompileError(f"tvm: {folder / TOLD} is not an artifact's: {error}") from error
    if told.format != FORMAT:
        raise CompileError(f"tvm: {folder} is of format {told.format}, this reads {FORMAT}")
    return told


class _Team(Enum):
    """Threads for the parallel loops of a library."""

    NEEDLESS = "needless"
    """It has no such loops."""
    PRESENT = "present"
    ABSENT = "absent"
    """This process has no OpenMP of GNU's."""


def _team_of(path: str) -> _Team:
    library = ctypes.CDLL(path)
    if not hasattr(library, _SLOT) or not hasattr(library, _LAUNCHER):
        return _Team.NEEDLESS
    return _Team.PRESENT if library.autopoiesis_has_team() else _Team.ABSENT


def _launch_on_team(path: str) -> None:
    """Have parallel loops run on torch's threads."""
    library = ctypes.CDLL(path)
    address = ctypes.cast(getattr(library, _LAUNCHER), ctypes.c_void_p).value
    ctypes.c_void_p.in_dll(library, _SLOT).value = address


@cache
def _tvm_runtime() -> None:
    """TVM's run-time, without its compiler: it gives memory and threads to what is loaded after it."""
    found = importlib.util.find_spec("tvm")
    if found is None or found.origin is None:
        raise ImportError("tvm is not installed: pip install 'autopoiesis[compile]'")
    ctypes.CDLL(str(Path(found.origin).parent / "lib" / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
