"""What the slow tests share: an interpreter that has vLLM, and one server that a user of plain vLLM would start.

Starting vLLM takes 15 seconds on an idle machine and minutes on a busy one, so each start serves many tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from execution.engines.models import model_directory
from execution.engines.vllm import environment
from execution.engines.vllm.child import _free_port
from execution.engines.vllm.http import Address, HttpError, ask_json
from loop.contracts import EngineError
from tests.execution.engines.vllm import policies

KEY = "a key of the tests"
START_S = 900.0
PATIENT = {"ask_s": 5.0, "step_budget_s": 10.0}
"""On a busy machine the deadlines of a service would decide the outcome."""
PAGE = Path(environment.ROOT) / "docs" / "vllm.md"


@dataclass(frozen=True)
class Server:
    """A running vLLM."""

    address: Address
    model: str
    folder: Path
    """Where it was started; its policy file is in it."""


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """Skips where vLLM is not installed."""
    try:
        return environment.interpreter()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def server(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The command of docs/vllm.md, word for word but for the interpreter, the model, the port and deadlines; with a
    small KV cache, a seat for one LoRA adapter, and what the page says for steering."""
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "shortest_first.py").write_text(policies.SHORTEST_FIRST)
    model = model_directory("tiny-llama")
    port = _free_port()
    words = documented_command()
    words[0] = vllm_python
    words[words.index("MODEL")] = str(model)
    words[words.index("8000")] = str(port)
    at = words.index("--additional-config") + 1
    section = json.loads(words[at])["autopoiesis"]
    words[at] = json.dumps({"autopoiesis": {**section, **PATIENT}})
    words += shlex.split(
        "--served-model-name tiny-llama --host 127.0.0.1 --enforce-eager --block-size 32 --max-num-seqs 64 "
        "--max-num-batched-tokens 4096 --kv-cache-memory-bytes 67108864 --enable-prompt-tokens-details "
        "--generation-config vllm --enable-lora --max-loras 1 --max-lora-rank 8 "
        "--logits-processors execution.engines.vllm.sampler:SeededSampler"
    )
    told = environment.child_environment(1, folder / "plugins")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env={**told, "VLLM_API_KEY": KEY},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = Address("127.0.0.1", port, KEY)
    try:
        wait_until_it_answers(process, address, folder / "log")
        yield Server(address, "tiny-llama", folder)
    finally:
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)


def documented_command() -> list[str]:
    """The first command of the page."""
    found = re.search(r"```\n(python -m vllm.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return shlex.split(found.group(1).replace("\\\n", " "))


def wait_until_it_answers(process: subprocess.Popen[bytes], address: Address, log: Path) -> None:
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            break
        with contextlib.suppress(HttpError):
            if asyncio.run(ask_json(address, "GET", "/health"))[0] == 200:
                return
        time.sleep(0.2)
    pytest.fail(f"vLLM did not come up:\n{log.read_text(errors='replace')[-4000:]}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What ends a shared engine comes after what uses it."""
    last = ("killed", "stop_ends")
    mine = [item for item in items if item.nodeid.startswith("tests/execution/engines/vllm/test_conformance")]
    late = [item for name in last for item in mine if name in item.name]
    late.sort(key=lambda item: last.index(next(name for name in last if name in item.name)))
    rest = [item for item in items if item not in late]
    at = max((i for i, item in enumerate(rest) if item in mine), default=len(rest) - 1)
    items[:] = [*rest[: at + 1], *late, *rest[at + 1 :]]
