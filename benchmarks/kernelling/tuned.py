"""MetaSchedule against the template of the same function: what tuning costs, and what it gains.

Tuned artifacts and the seconds that they took stay in a folder: a later run only measures. Tuning goes on from 32 trials
to 64, so that the seconds of 64 include those of 32.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import Options
from benchmarks.kernelling.case import bound
from benchmarks.kernelling.timing import Call, interleaved

BUDGET_S = 600.0
SECONDS = "seconds.json"


def rows_of(options: Options, folder: Path, scratch: Path) -> list[dict[str, Any]]:
    """One row for each function and number of trials, on one thread."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    return [row for name, subject in subjects() for row in _compared(options, name, subject, folder, scratch)]


def subjects() -> Iterator[tuple[str, Any]]:
    """A norm, a fused chain, a small linear layer, an int8 GEMV."""
    import torch  # noqa: PLC0415

    from benchmarks.kernelling.chains import gated  # noqa: PLC0415
    from execution.compiler.backends.tvm import families  # noqa: PLC0415
    from execution.compiler.port import Bucket  # noqa: PLC0415

    eight, four, one = Bucket(8, 8), Bucket(4, 4), Bucket(1, 1)
    with torch.inference_mode(False):  # what is exported may not be of inference mode
        yield "rms_norm unit 2048, 8 rows", families.rms_norm(rows=eight, hidden=2048, eps=1e-5, unit=True)
        inputs = [torch.ones(8, 4096) for _ in range(3)]
        weights = [torch.ones(4096) for _ in range(2)]
        yield "gated 4096, 8 rows", families.elementwise(gated(), inputs, weights, rows=eight)
        yield "linear 256x2048, 4 rows", families.linear(rows=four, inputs=256, outputs=2048)
        yield "int8_linear 2048x2048, 1 row", families.int8_linear(rows=one, inputs=2048, outputs=2048)


def _compared(
    options: Options, name: str, subject: Any, folder: Path, scratch: Path
) -> Iterator[dict[str, Any]]:
    import torch  # noqa: PLC0415

    from execution.compiler.backends.tvm import MetaSchedule, TemplateBackend  # noqa: PLC0415
    from execution.compiler.port import CompileError  # noqa: PLC0415
    from execution.compiler.source import Reference  # noqa: PLC0415

    inputs = tuple(_drawn(spec) for spec in subject.inputs)
    params = tuple(_drawn(spec) for spec in subject.params)
    eager = Reference.of(subject).eager
    calls: dict[str, Call] = {"eager": bound(lambda i, p: eager(*i, *p), inputs, params)}
    seconds: dict[str, float] = {}
    templates, tuner = TemplateBackend(), MetaSchedule(BUDGET_S, folder / "records")
    for number, recipe in enumerate(templates.recipes(subject)):
        place = scratch / f"{name}-{number}".replace(" ", "-")
        began = time.perf_counter()
        templates.compile(subject, recipe, place)
        seconds[f"template {number}"] = time.perf_counter() - began
        kernel: Any = templates.load(subject, recipe, place)
        calls[f"template {number}"] = bound(_run, kernel, inputs, kernel.prepare(params))
    spent_s = 0.0
    for recipe in tuner.recipes(subject):
        place = folder / f"{name}-{recipe.name}".replace(" ", "-").replace(",", "")
        try:
            spent_s = seconds[recipe.name] = _tuned(options, tuner, subject, recipe, place, spent_s)
            kernel = tuner.load(subject, recipe, place)
        except CompileError as error:
            yield {"case": name, "recipe": recipe.name, "error_text": str(error)}
            continue
        calls[recipe.name] = bound(_run, kernel, inputs, kernel.prepare(params))
    with torch.inference_mode():
        taken = interleaved(calls, 5 if options.quick else 11)
    best = min((n for n in taken if n.startswith("template")), key=taken.__getitem__)
    yield {"case": name, "recipe": "eager", "us": 1e6 * taken["eager"]}
    yield {"case": name, "recipe": "template", "us": 1e6 * taken[best], "seconds": seconds[best]}
    for recipe in tuner.recipes(subject):
        if recipe.name in taken:
            us = 1e6 * taken[recipe.name]
            yield {
                "case": name,
                "recipe": recipe.name,
                "us": us,
                "seconds": seconds[recipe.name],
                "gain over template": taken[best] / taken[recipe.name],
            }


def _run(kernel: Any, inputs: tuple[Any, ...], prepared: tuple[Any, ...]) -> Any:
    return kernel(*inputs, *prepared)


def _tuned(  # noqa: PLR0917
    options: Options, tuner: Any, subject: Any, recipe: Any, place: Path, before_s: float
) -> float:
    """Seconds of tuning so far, those of fewer trials included; tunes where the folder has no artifact."""
    told = place / SECONDS
    if told.is_file():
        return float(json.loads(told.read_text(encoding="utf-8")))
    if not options.json:
        print(f"  tuning {subject.op}, {recipe.name} ...", file=sys.stderr, flush=True)
    began = time.perf_counter()
    tuner.compile(subject, recipe, place)
    spent_s = before_s + time.perf_counter() - began
    told.write_text(json.dumps(spent_s), encoding="utf-8")
    return spent_s


def _drawn(spec: Any) -> Any:
    import torch  # noqa: PLC0415

    if spec.dtype == "int8":
        return torch.randint(-127, 128, spec.shape, dtype=torch.int8)
    return torch.randn(spec.shape)
