"""Where vLLM lives: an environment of its own beside the project's, and what its processes are told."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import execution
from execution.engines.vllm import release
from loop.contracts import EngineError

PYTHON_VARIABLE = "AUTOPOIESIS_VLLM_PYTHON"
ROOT = Path(execution.__file__).resolve().parent.parent
"""What has to be on the path for `import execution`."""
_METADATA = "Metadata-Version: 2.1\nName: autopoiesis-vllm-plugin\nVersion: 0\n"
_ENTRY_POINTS = """\
[vllm.general_plugins]
autopoiesis = execution.engines.vllm.plugin:register
[vllm.endpoint_plugins]
autopoiesis = execution.engines.vllm.endpoint:ControlEndpoint
"""


def interpreter(given: str = "") -> str:
    """A Python that can import vLLM: as given, `$AUTOPOIESIS_VLLM_PYTHON`, this one, or `.venv-vllm` of the checkout.

    Raises:
        EngineError: there is none; says how to get one.
    """
    for path in (given, os.environ.get(PYTHON_VARIABLE, "")):
        if path:
            if not os.access(path, os.X_OK):
                raise EngineError(f"{path}: no such interpreter (option python, or ${PYTHON_VARIABLE})")
            return path
    if release.importable():
        return sys.executable
    beside = ROOT / ".venv-vllm" / "bin" / "python"
    if os.access(beside, os.X_OK):
        return str(beside)
    raise EngineError(
        f"vLLM is not installed: `make vllm` puts it into {beside.parent.parent.name}, or name an interpreter "
        f"that has it (option python, or ${PYTHON_VARIABLE})"
    )


def settings(threads: int) -> dict[str, str]:
    """Environment variables that vLLM reads, for any of our processes."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model runs where the scheduler runs: a hop less each step
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several replicas would be bound to the same first cores
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def child_environment(threads: int, directory: Path) -> dict[str, str]:
    """For a vLLM server of ours: finds this package, and the plug-in's entry points (written into `directory`)."""
    found = directory / "autopoiesis_vllm_plugin-0.dist-info"
    found.mkdir(parents=True, exist_ok=True)
    (found / "METADATA").write_text(_METADATA)
    (found / "entry_points.txt").write_text(_ENTRY_POINTS)
    paths = [str(directory), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("COV_")},
        **settings(threads),
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "VLLM_PLUGINS": "autopoiesis",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    }
