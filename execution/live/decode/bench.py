"""The model of a trial job, opened once in the trial process: what candidates are held against."""

from __future__ import annotations

import functools
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from execution.compiler.port import Subject
from execution.engines.models import load_config, model_directory
from execution.engines.torch.decode import DecodeStep
from execution.engines.torch.kv import LaneCache
from execution.engines.torch.model import build_model
from execution.engines.torch.rope import rotation_table
from execution.engines.torch.weights import load_weights
from execution.live.decode.backend import decode_subject
from execution.live.decode.cases import Case, load_cases, synthetic_cases
from execution.live.decode.kernel import DecodeKernel, DecodeLibrary
from execution.live.decode.pack import rounded
from execution.live.decode.proof import Bench
from execution.live.decode.shape import PARTS, DecodeShape, Weights, read_model
from execution.live.decode.trial import TrialJob

_LENGTH = 512
_SEED = 20
_PROMPTS, _PROMPT_TOKENS = 8, 96


@functools.cache
def open_bench(job: TrialJob) -> Bench:
    """Model, KV memory and the original step; with rounded weights where int8 is asked for."""
    directory = model_directory(job.model, job.seed)
    config = load_config(directory)
    cpu = torch.device("cpu")
    model = build_model(config, load_weights(Path(directory), config, job.seed), torch.float32, cpu)
    shape, weights = read_model(
        model, config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rms_norm_eps
    )
    if job.int8:
        weights = rounded(weights)
        names = [f"layers.{i}.{part}" for i in range(shape.layers) for part in PARTS]
        for name, (matrix, _) in zip([*names, "head"], weights.matrices(), strict=True):
            model.get_submodule(name).register_buffer("weight", matrix)
        shape = replace(shape, int8=True)
    length = min(_LENGTH, config.max_position_embeddings)
    cache = LaneCache(config, job.most_rows + 3, length, torch.float32, cpu)
    table = rotation_table(config, length, cpu)
    return Bench(shape, weights, DecodeStep(model, cache, table), cache.layers, table)


def original_weights(job: TrialJob) -> Weights:
    """Those that are not rounded."""
    return open_bench(replace(job, int8=False)).weights


def subject_of_job(job: TrialJob, shape: DecodeShape) -> Subject:
    """What is compiled."""
    return decode_subject(shape, job.most_rows, job.threads)


def backend_of(name: str) -> Any:
    """An instance of `package.module:Class`."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)()


def open_kernel(job: TrialJob, bench: Bench, library: DecodeLibrary) -> DecodeKernel:
    """The compiled step over the bench's memory, with the original weights (it rounds by itself)."""
    prepared = library.prepare(original_weights(job) if job.int8 else bench.weights)
    return DecodeKernel(
        library, prepared, bench.rotations, bench.kv, most_rows=job.most_rows, threads=job.threads
    )


def cases_of_job(job: TrialJob, bench: Bench) -> list[Case]:
    """Recorded first, then those that are made."""
    length = bench.kv[0].shape[2]
    recorded = load_cases(Path(job.cases)) if job.cases else []
    fitting = [c for c in recorded if len(c.tokens) <= job.most_rows and max(c.positions) < length - 2]
    return fitting + list(synthetic_cases(bench.shape, length - 2, job.most_rows, job.most_rows, _SEED))


def case_of_rows(job: TrialJob, bench: Bench, rows: int) -> Case:
    """Ordinary values at lengths as a server sees them."""
    for case in cases_of_job(job, bench):
        if case.name.startswith("recorded") and len(case.tokens) == rows:
            return case
    draw = torch.Generator().manual_seed(_SEED + rows)
    shape, most = bench.shape, min(128, bench.kv[0].shape[2] - 2)
    positions = tuple(most - i % 16 for i in range(rows))
    past = tuple(
        torch.randn((rows, 2 * shape.kv_heads, most, shape.head_dim), generator=draw)
        for _ in range(shape.layers)
    )
    return Case(f"rows={rows}", (1,) * rows, positions, tuple(range(rows)), past)


def prompts_of_job(job: TrialJob, shape: DecodeShape) -> list[list[int]]:
    """Recorded prompts; drawn ones where there are none."""
    if job.prompts:
        return [list(p) for p in job.prompts if len(p) > 1]
    draw = torch.Generator().manual_seed(_SEED)
    return torch.randint(shape.vocabulary, (_PROMPTS, _PROMPT_TOKENS), generator=draw).tolist()
