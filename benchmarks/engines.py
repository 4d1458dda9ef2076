"""Tokens per second of the torch engine beside transformers and vLLM, on the same small model and prompts.

Each system lives in a process of its own and answers rounds in turn (all others are stopped meanwhile), so that all
meet the same machine; ratios are of rounds side by side, medians over rounds. A round is N streams at once: prompts
of 64 tokens, 128 new tokens each, greedy, none ended early. `torch` is measured through its port, every token
streamed to a reader as text; the others without any front. `torch_evolved` has served with `evolve_execution` until
nothing more was compiled, at most five minutes. CPU time is of the whole process: on a busy machine it
tells more than the clock. transformers' continuous batching does not tell its steps: as many as new tokens are taken.
`same_tokens`: share of answers equal to the torch engine's (float32 sums differ in order, so a near tie may end
differently). vLLM joins where an interpreter has it: `--vllm-python`, AUTOPOIESIS_VLLM_PYTHON,
or .venv-vllm; without one its rows and targets are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkInputError, Options, Target, parse_options, progress, publish, run_main
from execution.engines.models import BUILTIN_MODELS, model_directory

MODEL, PROMPT_TOKENS = "tiny-llama", 64
SYSTEMS = ("torch", "torch_evolved", "transformers_cb", "transformers_generate", "vllm")
EVOLVED_OVER_VLLM = 1.5
"""What the evolved engine aims at."""
TARGETS = {"transformers_cb": 2.0, "vllm": 1.0}
AIMED_STREAMS = 16
ROOT = Path(__file__).resolve().parent.parent
Answer = dict[str, Any]


class Worker:
    """A system in its process."""

    def __init__(self, system: str, python: str, directory: Path, threads: int, max_streams: int) -> None:
        self.system = system
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed with the worker
        words = [
            python,
            "-m",
            "benchmarks.engine_workers",
            system,
            str(directory),
            str(threads),
            str(max_streams),
        ]
        self._process = subprocess.Popen(  # noqa: S603
            words,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        self.started: Answer = self._read()
        self._pause()

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> Answer:
        """One round; the process stands still before and after it."""
        self._process.send_signal(signal.SIGCONT)
        self._write({"prompts": prompts, "max_tokens": max_tokens})
        answer = self._read()
        self._pause()
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def _write(self, question: Mapping[str, Any]) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()

    def _read(self) -> Answer:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            self._process.wait()
            self._errors.seek(0)
            tail = self._errors.read().decode("utf-8", "replace").strip().splitlines()[-12:]
            raise RuntimeError(
                f"{self.system} ended with code {self._process.returncode}:\n" + "\n".join(tail)
            )
        answer: Answer = json.loads(line)
        return answer


def measure(options: Options) -> tuple[list[dict[str, Any]], list[Target]]:
    """Rows of all systems, and what the torch engine should reach."""
    quick = options.quick
    streams = options.extra.streams or ([1, 16] if quick else [1, 4, 16, 64])
    rounds = options.extra.rounds or (1 if quick else 5)
    new_tokens = 32 if quick else 128
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    for threads in options.extra.threads or ([1] if quick else [1, 2]):
        with workers(options, threads, max(streams)) as found:
            for count in streams:
                with progress(options, f"{threads} threads, {count} streams"):
                    answers = interleaved(found, count, rounds, new_tokens, options.seed)
                rows += summary(found, answers, threads, count, new_tokens)
                if count == AIMED_STREAMS:
                    targets += aims(answers, threads)
    return rows, targets


@contextlib.contextmanager
def workers(options: Options, threads: int, max_streams: int) -> Iterator[list[Worker]]:
    """All systems that are there, started one after the other."""
    directory = model_directory(MODEL, options.seed)
    found: list[Worker] = []
    try:
        for system in options.extra.systems or SYSTEMS:
            python = vllm_python(options) if system == "vllm" else sys.executable
            if python is None:
                if not options.json:
                    print("  vllm: no interpreter has it: left out", file=sys.stderr)
                continue
            with progress(options, f"start {system} with {threads} threads"):
                found.append(Worker(system, python, directory, threads, max_streams))
        yield found
    finally:
        for worker in found:
            worker.close()


def vllm_python(options: Options) -> str | None:
    """An interpreter that has vLLM; None: there is none. Raises BenchmarkInputError for one that does not exist."""
    given = options.extra.vllm_python or os.environ.get("AUTOPOIESIS_VLLM_PYTHON")
    if given:
        if not Path(given).is_file():
            raise BenchmarkInputError(f"engines: no such interpreter: {given}")
        return str(given)
    beside = ROOT / ".venv-vllm" / "bin" / "python"
    return str(beside) if beside.is_file() else None


def interleaved(
    found: Sequence[Worker], count: int, rounds: int, new_tokens: int, seed: int
) -> dict[str, list[Answer]]:
    """Answers of each system to the same rounds, the order turning; a short round first warms each up."""
    vocabulary = BUILTIN_MODELS[MODEL].vocab_size
    answers: dict[str, list[Answer]] = {worker.system: [] for worker in found}
    for number in range(-1, rounds):
        rng = random.Random(f"{seed}/{count}/{number}")
        prompts = [[rng.randrange(min(256, vocabulary)) for _ in range(PROMPT_TOKENS)] for _ in range(count)]
        turn = number % len(found)
        for worker in [*found[turn:], *found[:turn]]:
            answer = worker.ask(prompts, new_tokens if number >= 0 else min(8, new_tokens))
            lengths = {len(tokens) for tokens in answer["tokens"]}
            if number >= 0 and lengths != {new_tokens}:
                raise RuntimeError(f"{worker.system}: answers of {sorted(lengths)} tokens, not {new_tokens}")
            if number >= 0:
                answers[worker.system].append(answer)
    return answers


def summary(
    found: Sequence[Worker], answers: Mapping[str, list[Answer]], threads: int, count: int, new_tokens: int
) -> list[dict[str, Any]]:
    """A row for each system: medians over rounds."""
    rows = []
    for worker in found:
        own = answers[worker.system]
        steps = [a["steps"] or new_tokens for a in own]
        row = {
            "system": worker.system,
            "threads": threads,
            "streams": count,
            "tokens_per_s": statistics.median(count * new_tokens / a["wall_s"] for a in own),
            "step_ms": statistics.median(1e3 * a["wall_s"] / n for a, n in zip(own, steps, strict=True)),
            "cpu_ms_per_step": statistics.median(
                1e3 * a["cpu_s"] / n for a, n in zip(own, steps, strict=True)
            ),
        }
        if "torch" in answers:
            row["torch_is_faster"] = ratio(answers, worker.system, "wall_s")
            row["torch_is_faster_by_cpu"] = ratio(answers, worker.system, "cpu_s")
            row["same_tokens"] = agreement(answers["torch"], own)
        start = worker.started
        row |= {"start_s": start["start_s"], "rss_mib": own[-1]["rss_mib"], "peak_mib": own[-1]["peak_mib"]}
        row["rounds"] = len(own)
        rows.append(row)
    return rows


def aims(answers: Mapping[str, list[Answer]], threads: int) -> list[Target]:
    """Speed over each rival that is there."""
    found = [
        Target(f"speed_over_{rival}/{AIMED_STREAMS} streams, {threads} threads", value, target, "higher", "x")
        for rival, target in TARGETS.items()
        if rival in answers and "torch" in answers
        for value in (ratio(answers, rival, "wall_s"),)
    ]
    if "torch_evolved" in answers and "vllm" in answers:
        value = ratio(answers, "vllm", "wall_s", ours="torch_evolved")
        name = f"evolved_speed_over_vllm/{AIMED_STREAMS} streams, {threads} threads"
        found.append(Target(name, value, EVOLVED_OVER_VLLM, "higher", "x"))
    return found


def ratio(answers: Mapping[str, list[Answer]], rival: str, field: str, *, ours: str = "torch") -> float:
    """Median over rounds of the rival's time over ours, in the same round."""
    pairs = zip(answers[rival], answers[ours], strict=True)
    return statistics.median(float(theirs[field]) / float(own[field]) for theirs, own in pairs)


def agreement(ours: Sequence[Answer], theirs: Sequence[Answer]) -> float:
    """Share of answers that are the same, token for token."""
    pairs = [
        (a, b)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one["tokens"], other["tokens"], strict=True)
    ]
    return statistics.fmean(1.0 if a == b else 0.0 for a, b in pairs)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parse_options("engines", __doc__, argv, extend=_extend)
    rows, targets = measure(options)
    return publish(options, rows, targets)


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, nargs="*", help="thread counts (default: 1 2)")
    parser.add_argument("--streams", type=int, nargs="*", help="streams at once (default: 1 4 16 64)")
    parser.add_argument("--rounds", type=int, help="rounds of each (default: 5)")
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, help="what to compare (default: all)")
    parser.add_argument("--vllm-python", help="interpreter that has vLLM")


if __name__ == "__main__":
    sys.exit(run_main(main))
