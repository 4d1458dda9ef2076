"""One engine in a process of its own, for benchmarks.engines: answers a round of prompts for each line on stdin.

    python -m benchmarks.engine_workers SYSTEM MODEL_DIRECTORY THREADS MAX_STREAMS

One JSON object a line: `{"prompts": [[ids]], "max_tokens": n}` in, what the round took out. The first line out says
how the start went. stdout belongs to that; whatever the engines print goes to stderr. Runs under the interpreter
that has the engine, so it imports nothing else.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

Prompts = list[list[int]]
Round = Callable[[Prompts, int], tuple[list[list[int]], int]]
"""(prompts, tokens for each) to (answers, steps; 0: not told)."""
MAX_MODEL_LEN, MAX_BATCHED_TOKENS = 2048, 2048
EVOLVE_STREAMS = (1, 4, 16, 64)
EVOLVE_PROMPT_TOKENS = 64
"""As rounds have them."""
EVOLVE_S = 300.0
"""What execution may take to evolve."""


@contextmanager
def torch_engine(directory: str, threads: int, max_streams: int, *, evolved: bool = False) -> Iterator[Round]:
    """Ours, through its port: every token is streamed to a reader, as text too. `evolved`: it serves until execution
    has nothing more to compile, and then watches on."""
    from execution.engines.torch import TorchEngine  # noqa: PLC0415
    from loop.contracts.engine import EngineLimits, EngineRequest, EngineSpec, SamplingParams  # noqa: PLC0415

    limits = EngineLimits(max_num_seqs=max_streams, max_num_batched_tokens=MAX_BATCHED_TOKENS)
    options: dict[str, str | int | float | bool] = {
        "threads": threads,
        "dtype": "float32",
        "device": "cpu",
        "prefix_cache": False,
        "evolve_execution": evolved,
    }
    engine = TorchEngine(EngineSpec("torch", directory, limits=limits, options=options))

    async def read(number: int, prompt: list[int], max_tokens: int) -> list[int]:
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        tokens: list[int] = []
        async for output in engine.generate(EngineRequest(str(number), tuple(prompt), sampling)):
            tokens += output.token_ids
        return tokens

    async def serve(prompts: Prompts, max_tokens: int) -> tuple[list[list[int]], int]:
        before = (await engine.stats()).steps
        answers = await asyncio.gather(*(read(i, prompt, max_tokens) for i, prompt in enumerate(prompts)))
        return answers, (await engine.stats()).steps - before

    async def evolve() -> None:
        until_s = time.monotonic() + EVOLVE_S
        for number in itertools.count():
            state = str((await engine.execution())["state"])
            if state == "watching" or state.startswith("ended") or time.monotonic() > until_s:
                return
            await serve(
                [[1 + i] * EVOLVE_PROMPT_TOKENS for i in range(EVOLVE_STREAMS[number % len(EVOLVE_STREAMS)])],
                64,
            )

    with asyncio.Runner() as runner:
        runner.run(engine.start())
        if evolved:
            runner.run(evolve())
        yield lambda prompts, max_tokens: runner.run(serve(prompts, max_tokens))
        runner.run(engine.stop())


@contextmanager
def vllm_engine(directory: str, threads: int, max_streams: int) -> Iterator[Round]:
    """vLLM, eager, in process (DESIGN section 7): no front, no detokeniser, no text."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    from vllm import EngineArgs, LLMEngine, SamplingParams  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

    arguments = EngineArgs(
        model=directory,
        enforce_eager=True,
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=max_streams,
        max_num_batched_tokens=MAX_BATCHED_TOKENS,
        kv_cache_memory_bytes=512 * 2**20,
        block_size=32,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    engine = LLMEngine.from_engine_args(arguments)
    rounds = 0

    def serve(prompts: Prompts, max_tokens: int) -> tuple[list[list[int]], int]:
        nonlocal rounds
        rounds += 1
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        for number, prompt in enumerate(prompts):
            engine.add_request(f"{rounds}-{number}", {"prompt_token_ids": prompt}, sampling)
        answers: dict[int, list[int]] = {}
        steps = 0
        while engine.has_unfinished_requests():
            steps += 1
            for output in engine.step():
                if output.finished:
                    answers[int(output.request_id.split("-")[1])] = list(output.outputs[0].token_ids)
        return [answers[i] for i in range(len(prompts))], steps

    yield serve


@contextmanager
def transformers_continuous(directory: str, threads: int, max_streams: int) -> Iterator[Round]:
    """Continuous batching of transformers, one manager for all rounds."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig  # noqa: PLC0415

    model, generation = _transformers_model(directory, threads, "paged|sdpa")
    blocks = max_streams * 16  # of 32 tokens: 512 tokens a stream
    config = ContinuousBatchingConfig(
        page_size=32,
        num_blocks=blocks,
        max_batch_tokens=MAX_BATCHED_TOKENS,
        max_requests_per_batch=max_streams,
        use_cuda_graph=False,
    )
    manager = model.init_continuous_batching(generation_config=generation, continuous_batching_config=config)
    manager.start()

    def serve(prompts: Prompts, max_tokens: int) -> tuple[list[list[int]], int]:
        ids = manager.add_requests(inputs=prompts, max_new_tokens=max_tokens)
        answers: dict[str, list[int]] = {}
        while len(answers) < len(ids):
            result = manager.get_result(timeout=5)
            if result is None and not manager.is_running():
                raise RuntimeError("transformers' continuous batching ended")
            if result is not None and result.is_finished():
                if result.error:
                    raise RuntimeError(result.error)
                answers[result.request_id] = list(result.generated_tokens)
        return [answers[i] for i in ids], 0

    yield serve
    manager.stop(block=True)


@contextmanager
def transformers_generate(directory: str, threads: int, max_streams: int) -> Iterator[Round]:
    """Plain `generate` of transformers on one batch: all prompts are as long, so nothing is padded."""
    import torch  # noqa: PLC0415

    del max_streams
    model, generation = _transformers_model(directory, threads, "sdpa")

    def serve(prompts: Prompts, max_tokens: int) -> tuple[list[list[int]], int]:
        ids = torch.tensor(prompts)
        generation.max_new_tokens = max_tokens
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=generation)
        return out[:, ids.shape[1] :].tolist(), max_tokens

    yield serve


SYSTEMS: dict[str, Callable[[str, int, int], AbstractContextManager[Round]]] = {
    "torch": torch_engine,
    "torch_evolved": functools.partial(torch_engine, evolved=True),
    "vllm": vllm_engine,
    "transformers_cb": transformers_continuous,
    "transformers_generate": transformers_generate,
}


def _transformers_model(directory: str, threads: int, attention: str) -> tuple[Any, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, GenerationConfig  # noqa: PLC0415

    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation=attention
    )
    model.eval()
    # Without an end token answers run to their full length, as with ignore_eos.
    make: Any = GenerationConfig
    generation = make(do_sample=False, eos_token_id=None, pad_token_id=258, max_new_tokens=128)
    model.generation_config = generation
    return model, generation


def memory_mib() -> tuple[float, float]:
    """(resident now, resident at most) of this process."""
    found = {}
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name in {"VmRSS", "VmHWM"}:
            found[name] = int(value.split()[0]) / 1024
    return found["VmRSS"], found["VmHWM"]


def main() -> int:
    """Serve rounds until stdin ends."""
    began_s = time.perf_counter()
    system, directory, threads, max_streams = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with SYSTEMS[system](directory, threads, max_streams) as serve:
        rss, peak = memory_mib()
        print(json.dumps({"start_s": time.perf_counter() - began_s, "rss_mib": rss}), file=answers)
        for line in sys.stdin:
            question = json.loads(line)
            cpu_s, began_s = time.process_time(), time.perf_counter()
            tokens, steps = serve(question["prompts"], question["max_tokens"])
            took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
            rss, peak = memory_mib()
            answer = {"wall_s": took_s, "cpu_s": cpu_s, "steps": steps, "tokens": tokens}
            print(json.dumps({**answer, "rss_mib": rss, "peak_mib": peak}), file=answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
