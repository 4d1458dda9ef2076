"""A vLLM server of our own: the process that `python -m vllm.entrypoints.openai.api_server` is."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from execution.engines.vllm import environment
from execution.engines.vllm.http import Address, HttpError, ask_json
from execution.engines.vllm.options import SAMPLER, VllmOptions
from loop.contracts import EngineError, EngineSpec

_POLL_S = 0.2
_STOP_S = 15.0
_TAIL_BYTES = 4000


def command(python: str, directory: str, spec: EngineSpec, options: VllmOptions, port: int) -> list[str]:
    """What is run: the same flags that a user of plain vLLM gives. (The key goes by the environment.)"""
    seats, tokens = options.ceilings(spec)
    line = [
        python, "-m", "vllm.entrypoints.openai.api_server",
        "--model", directory,
        "--served-model-name", spec.served_name or spec.model,
        "--host", "127.0.0.1", "--port", str(port),
        "--scheduler-cls", "execution.engines.vllm.scheduler.PolicyScheduler",
        "--additional-config", json.dumps(options.plugin),
        "--dtype", options.dtype,
        "--seed", str(spec.seed),
        "--block-size", str(options.block_tokens),
        "--max-num-seqs", str(seats),
        "--max-num-batched-tokens", str(tokens),
        "--max-logprobs", str(options.max_logprobs),
        "--tensor-parallel-size", str(options.tp),
        "--pipeline-parallel-size", str(options.pp),
        "--enable-prompt-tokens-details",
        "--generation-config", "vllm",
        "--disable-uvicorn-access-log",
        "--enable-prefix-caching" if options.prefix_caching else "--no-enable-prefix-caching",
    ]  # fmt: skip
    if options.device_kind == "cpu":
        line += ["--logits-processors", SAMPLER]
    if options.kv_cache_bytes:
        line += ["--kv-cache-memory-bytes", str(options.kv_cache_bytes)]
    if options.max_model_len:
        line += ["--max-model-len", str(options.max_model_len)]
    if options.eager:
        line.append("--enforce-eager")
    if options.max_adapters:
        line += ["--enable-lora", "--max-loras", str(options.max_adapters)]
        line += ["--max-lora-rank", str(options.max_lora_rank)]
    return line


class ServerChild:
    """Starts the server, waits until it answers, ends it and all it has started."""

    def __init__(self, spec: EngineSpec, options: VllmOptions, directory: str) -> None:
        self._spec = spec
        self._options = options
        self._model = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._place: Path | None = None
        self.address = Address("127.0.0.1", 0)

    @property
    def pid(self) -> int | None:
        """Of the server; None: it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    async def start(self) -> None:
        """Raises EngineError with the end of the server's log when it does not come up."""
        python = environment.interpreter(self._options.python)
        self._place = place = Path(tempfile.mkdtemp(prefix="autopoiesis-vllm-"))
        key = self._options.api_key or secrets.token_urlsafe(24)
        self.address = Address("127.0.0.1", self._options.port or _free_port(), key)
        line = command(python, self._model, self._spec, self._options, self.address.port)
        told = environment.child_environment(self._options.threads, place / "plugins")
        with (place / "log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  our own command; it returns at once
                line,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**told, "VLLM_API_KEY": key},
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )
        deadline = time.monotonic() + self._options.start_s
        try:
            while not await self._answers():
                if self._process.poll() is not None:
                    raise EngineError(f"the vLLM server ended while it started:\n{self._tail()}")
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"the vLLM server did not answer within {self._options.start_s:.0f} s "
                        f"(option start_s):\n{self._tail()}"
                    )
                await asyncio.sleep(_POLL_S)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL to its whole process group; idempotent."""
        process, self._process = self._process, None
        if process is not None:
            for how, patience_s in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, how)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(process.wait, patience_s)
                    if how is signal.SIGKILL:
                        break
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)
            self._place = None

    async def _answers(self) -> bool:
        try:
            status, _ = await ask_json(self.address, "GET", "/health")
        except HttpError:
            return False
        return status == 200

    def _tail(self) -> str:
        """The end of its log, the lines that tell of errors first."""
        if self._place is None:
            return ""
        text = (self._place / "log").read_bytes()[-50_000:].decode("utf-8", "replace")
        errors = [line for line in text.splitlines() if "Error" in line]
        return "\n".join(errors[-8:]) or text[-_TAIL_BYTES:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    """In the child, before it runs: the kernel ends it when the thread that started it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
