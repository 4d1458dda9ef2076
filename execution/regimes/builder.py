"""Builds variants in a child process of low priority, and proves each there before the serving process sees it.

A recipe that crashes the child, gives wrong answers, or takes too long is refused with the reason; serving goes on.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from execution.graph.capture import capture
from execution.graph.form import Graph
from execution.regimes.planner import CostModel, predicted_s
from execution.regimes.recipe import (
    BuildError,
    Built,
    Recipe,
    artifact_key,
    module_key,
    open_artifact,
    remember,
    transformed,
    write_artifact,
)
from execution.regimes.regime import Regime
from execution.regimes.store import discard, make_room


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How near a variant's answers must be to the original's: |difference| <= atol + rtol * |original|."""

    rtol: float = 1e-3
    atol: float = 1e-5

    def worst(self, answer: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
        """Largest |difference| in units of what is allowed; infinite for other shapes, types or places of NaN."""
        if len(answer) != len(reference):
            return float("inf")
        worst = 0.0
        for mine, theirs in zip(answer, reference, strict=True):
            if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
                return float("inf")
            if not mine.numel():
                continue
            worst = max(worst, self._worst(mine.detach(), theirs.detach()))
        return worst

    def _worst(self, mine: Tensor, theirs: Tensor) -> float:
        same = (mine == theirs) | (mine.isnan() & theirs.isnan())
        units = (mine.double() - theirs.double()).abs() / (self.atol + self.rtol * theirs.double().abs())
        return torch.where(same, 0.0, units).nan_to_num(nan=float("inf")).max().item()


@dataclass(frozen=True, slots=True)
class Site:
    """Where and for what is built."""

    store: Path
    """Folder of artifacts."""
    threads: int = 1
    tolerance: Tolerance = field(default_factory=Tolerance)
    costs: CostModel = field(default_factory=CostModel)
    max_bytes: int = 4 << 30
    """Of all artifacts; what was opened longest ago makes room."""


def build(
    module: nn.Module, recipe: Recipe, regime: Regime, examples: Sequence[Sequence[Tensor]], site: Site
) -> Built:
    """Make one variant here and now, or find it in the store; proven on the examples, all of the regime's sizes.

    Raises BuildError, which names the recipe and the reason.
    """
    return _Workshop(module, site).build(recipe, regime, examples)


class _Workshop:
    """A module with its captured graphs, one for each shape."""

    def __init__(self, module: nn.Module, site: Site) -> None:
        self.module, self.site = module.eval(), site
        self.key = module_key(module, site.threads)
        self._graphs: dict[tuple[torch.Size, ...], Graph] = {}

    def build(self, recipe: Recipe, regime: Regime, examples: Sequence[Sequence[Tensor]]) -> Built:
        started_s = time.monotonic()
        try:
            graph = transformed(self._graph(examples[0]), recipe, regime)
            folder = self.site.store / artifact_key(graph, recipe, self.site.threads)
            cached = folder.is_dir()
            if not cached:
                write_artifact(graph, recipe, examples[0], folder)
        except Exception as error:  # a compiler may raise anything
            told = str(error).strip().splitlines() or [""]
            raise BuildError(f"{recipe.name}: {type(error).__name__}: {told[0][:200]}") from error
        built = Built(
            recipe, regime, folder, len(graph.calls),
            predicted_s(graph, recipe, self.site.costs), 0.0, 0.0, cached,
        )  # fmt: skip
        if cached and not self._opens(built, graph):  # torn, or of a library that is gone
            discard(folder)
            write_artifact(graph, recipe, examples[0], folder)
            built = replace(built, cached=False)
        worst = self._prove(built, graph, examples)
        built = replace(built, worst_error=worst, build_s=time.monotonic() - started_s)
        remember(built, self.key, self.site.store, examples[0])
        make_room(self.site.store, self.site.max_bytes, keep=folder)
        return built

    def _opens(self, built: Built, graph: Graph) -> bool:
        try:
            open_artifact(built, graph.tensors)
        except BuildError:
            return False
        return True

    def _graph(self, example: Sequence[Tensor]) -> Graph:
        shapes = tuple(value.shape for value in example)
        if shapes not in self._graphs:
            self._graphs[shapes] = capture(self.module, tuple(example)).graph
        return self._graphs[shapes]

    def _prove(self, built: Built, graph: Graph, examples: Sequence[Sequence[Tensor]]) -> float:
        run = open_artifact(built, graph.tensors)
        worst = 0.0
        for example in examples:
            with torch.no_grad():
                worst = max(worst, self.site.tolerance.worst(run(*example), self.module(*example)))
        if worst > 1:
            raise BuildError(f"{built.recipe.name}: wrong: {worst:.3g} times the tolerance")
        return worst


class Builder:
    """A child process that builds one variant after another. Use as a context manager, or call `close`."""

    def __init__(self, module: nn.Module, site: Site) -> None:
        self._module, self._site = module, site
        self._pool: ProcessPoolExecutor | None = None
        self._starting = threading.Lock()
        self._closed = False

    def warm(self) -> None:
        """Start the child, which takes seconds: somebody will want it soon."""
        with contextlib.suppress(BrokenProcessPool, BuildError):
            self._started().submit(os.getpid)

    def submit(self, recipe: Recipe, regime: Regime, examples: Sequence[Sequence[Tensor]]) -> Future[Built]:
        """A future of the variant; its exception is a BuildError, or BrokenProcessPool when the child died."""
        try:
            return self._started().submit(_build_in_child, recipe, regime, [_plain(one) for one in examples])
        except BrokenProcessPool:  # the child died of an earlier recipe: a new one
            self._end()
            return self._started().submit(_build_in_child, recipe, regime, [_plain(one) for one in examples])

    def close(self) -> None:
        """End the child, whatever it does; nothing is built any more."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        with self._starting:
            pool, self._pool = self._pool, None
        if pool is None:
            return
        children = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            _kill(child)
            child.join(timeout=5)

    def __enter__(self) -> Builder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> ProcessPoolExecutor:
        with self._starting:
            if self._closed:
                raise BuildError("the builder is closed")
            if self._pool is None:
                told = _portable(self._module), self._site
                spawn = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, spawn, _enter_child, told)
            return self._pool


def _kill(child: Any) -> None:
    """The child with the compilers that it started, which share its process group once it is up."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(child.pid) == child.pid:
            os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        child.kill()


_workshop: _Workshop | None = None


def _enter_child(module: bytes, site: Site) -> None:
    global _workshop  # noqa: PLW0603 the child's one job
    os.setpgid(0, 0)
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    os.nice(19)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch.set_num_threads(site.threads)
    _workshop = _Workshop(_from_portable(module), site)


def _leave_with_parent(parent: int) -> None:
    """A server that was killed leaves no compiler behind."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def _build_in_child(recipe: Recipe, regime: Regime, examples: list[list[Any]]) -> Built:
    assert _workshop is not None  # noqa: S101 the initializer ran
    return _workshop.build(recipe, regime, [[torch.from_numpy(value) for value in one] for one in examples])


def _plain(example: Sequence[Tensor]) -> list[Any]:
    """As numpy arrays: torch would send tensors through shared memory, which outlives nobody."""
    return [value.detach().cpu().numpy() for value in example]


def _portable(module: nn.Module) -> bytes:
    import io  # noqa: PLC0415

    held = io.BytesIO()
    torch.save(module, held)
    return held.getvalue()


def _from_portable(data: bytes) -> nn.Module:
    import io  # noqa: PLC0415

    module: nn.Module = torch.load(io.BytesIO(data), weights_only=False)
    return module


Submit = Callable[[Recipe, Regime, Sequence[Sequence[Tensor]]], "Future[Built]"]
