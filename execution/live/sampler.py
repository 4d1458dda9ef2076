"""Where a serving engine's time goes: one step in N is looked at closely, the others are only counted.

In a sampled step each module's `forward` is wrapped by a stopwatch; otherwise the engine runs as if nobody watched.
What a sampled step takes longer than its like is measured, and N chosen so that all of it stays below `share` of
the time. Some inputs are copied (bounded) for proofs later.

Ranking is by time that could be won: what was spent beyond the roofline's floor (Williams et al., 2009).
"""

from __future__ import annotations

import re
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from execution.engines.torch.core import DECODE, EngineCore
from execution.engines.torch.scheduler import Schedule
from execution.graph.cost import Cost, Peaks, roofline_s
from execution.live.place import PlaceTrial

_LAYER = re.compile(r"(^|\.)\d+(\.|$)")
_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
_KEEP_BYTES, _KEEP_ONE_BYTES, _KEEP_EACH = 16 << 20, 1 << 20, 3
_LEAST_EVERY = 16
_TEXTS, TEXT_TOKENS = 16, 192


def bucket_of(rows: int) -> tuple[int, int]:
    """Least and most rows that are counted together."""
    last = 0
    for most in _BUCKETS:
        if rows <= most:
            return last + 1, most
        last = most
    return last + 1, 1 << 30


def group_of(name: str) -> str:
    """The same for all layers: `layers.*.mlp`."""
    return _LAYER.sub(r"\1*\2", name)


_NOTHING = Cost()


@dataclass(slots=True)
class Spent:
    """What one kind of module took at one size."""

    calls: int = 0
    time_s: float = 0.0
    least_s: float = float("inf")
    cost: Cost = _NOTHING
    """Of all calls."""


@dataclass(frozen=True, slots=True)
class HotPath:
    """One line of a profile, extrapolated to all steps."""

    unit: str
    rows: tuple[int, int]
    threads: int
    calls: float
    spent_s: float
    floor_s: float
    """What the roofline says is needed."""
    share: float
    """Of all step time."""
    prompts: bool = False
    """Whether this is of steps with prompts."""

    @property
    def could_win_s(self) -> float:
        """Time beyond the floor."""
        return max(0.0, self.spent_s - self.floor_s)


@dataclass(slots=True)
class _Watched:
    name: str
    group: str
    module: nn.Module
    weights: Cost
    """Bytes of its parameters; FLOPs for one row."""


@dataclass(slots=True)
class StepStatistics:
    """Counted for every step, by number of sequences that decode."""

    steps: int = 0
    time_s: float = 0.0
    recent_s: deque[float] = field(default_factory=lambda: deque(maxlen=64))


class StepSampler:
    """A StepObserver. Belongs to the step thread; `profile` and the like may be asked from elsewhere."""

    def __init__(
        self, core: EngineCore, *, threads: int, every: int = 24, share: float = 0.005,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self._core, self._threads, self._share, self._clock = core, threads, share, clock
        self.steps = 0
        self.sampled = 0
        self.by_rows: dict[int, StepStatistics] = defaultdict(StepStatistics)
        """Steps without prompts."""
        self.mixed = StepStatistics()
        """Steps with prompts."""
        self.excess_s = 0.0
        """What sampling has cost."""
        self.texts: deque[tuple[int, ...]] = deque(maxlen=_TEXTS)
        """Token ids of requests that were seen under way."""
        self.inputs: dict[tuple[str, tuple[int, int]], list[torch.Tensor]] = defaultdict(list)
        """Recorded inputs of modules that take one tensor."""
        self.trial: PlaceTrial | None = None
        self._spent: dict[tuple[str, tuple[int, int], bool], Spent] = defaultdict(Spent)
        self._sampled_s = {True: 0.0, False: 0.0}
        """Time of sampled steps without prompts, and with."""
        self._kept_bytes = 0
        self._watched: list[_Watched] | None = None
        self._open: list[_Watched] = []
        self._calls: list[tuple[_Watched, int, float, int]] = []
        self._every = {True: every, False: every}
        """Of steps without prompts, and with: those are few, and seldom alike."""
        self._until = dict(self._every)
        self._attached_s = 0.0

    # ---- StepObserver ----

    def begins(self, schedule: Schedule) -> None:
        """A step is about to run."""
        trial = self.trial
        if trial is not None:
            trial.begins(sum(size for _, size in schedule.prompts))
            return  # it measures whole steps: nobody may disturb it
        pure = not schedule.prompts
        self._until[pure] -= 1
        if self._until[pure] <= 0:
            began_s = self._clock()
            self._attach(schedule)
            self._attached_s = self._clock() - began_s

    def ended(self, schedule: Schedule, taken_s: float) -> None:
        """It is over."""
        self.steps += 1
        rows, pure = len(schedule.decodes), not schedule.prompts
        if self._open:
            self._detach(rows, taken_s, pure=pure)
            return
        kind = self.by_rows[rows] if pure else self.mixed
        kind.steps += 1
        kind.time_s += taken_s
        kind.recent_s.append(taken_s)
        trial = self.trial
        if trial is not None:
            trial.ended(rows, taken_s, prompt_tokens=sum(size for _, size in schedule.prompts))

    # ---- For others ----

    @property
    def every(self) -> int:
        """One step in so many is looked at closely, of those without prompts."""
        return self._every[True]

    @property
    def overhead(self) -> float:
        """Share of the time that sampling has cost so far."""
        total = sum(s.time_s for s in list(self.by_rows.values())) + self.mixed.time_s
        return self.excess_s / total if total else 0.0

    def sizes(self) -> list[int]:
        """Batch sizes of steps without prompts, by time spent."""
        listed = list(self.by_rows.items())
        return [rows for rows, s in sorted(listed, key=lambda item: -item[1].time_s) if s.steps]

    def profile(self, peaks: Peaks) -> list[HotPath]:
        """All that was seen, most time to win first."""
        pure_s = sum(s.time_s for s in list(self.by_rows.values()))
        total_s = pure_s + self.mixed.time_s
        scales = {
            pure: whole_s / max(self._sampled_s[pure], 1e-9)
            for pure, whole_s in ((True, pure_s), (False, self.mixed.time_s))
        }
        found = []
        for (unit, rows, pure), spent in list(self._spent.items()):
            scale = scales[pure]
            floor_s = roofline_s(spent.cost, peaks)
            found.append(
                HotPath(
                    unit,
                    rows,
                    self._threads,
                    spent.calls * scale,
                    spent.time_s * scale,
                    min(floor_s, spent.time_s) * scale,
                    spent.time_s * scale / max(total_s, 1e-9),
                    prompts=not pure,
                )
            )
        return sorted(found, key=lambda path: -path.could_win_s)

    def forget(self) -> None:
        """Modules were replaced: look for them anew, and count from nothing."""
        self._watched = None
        self._spent.clear()
        self._sampled_s = {True: 0.0, False: 0.0}
        self.sampled = self.steps = 0
        self.by_rows.clear()
        self.mixed = StepStatistics()
        self.excess_s = 0.0

    # ---- Details ----

    def _attach(self, schedule: Schedule) -> None:
        if self._watched is None:
            self._watched = _watchable(self._core.modules())
        self._calls = []
        for watched in self._watched:
            watched.module.forward = self._timed(watched, watched.module.forward)
        self._open = self._watched
        for sequence in schedule.decodes[:2]:
            self.texts.append(tuple(sequence.tokens[-TEXT_TOKENS:]))

    def _timed(self, watched: _Watched, forward: Callable[..., Any]) -> Callable[..., Any]:
        clock, calls, keep = self._clock, self._calls, self._keep

        def timed(x: Any, *rest: Any) -> Any:
            if not rest and isinstance(x, torch.Tensor):
                keep(watched.group, x)
            began_s = clock()
            y = forward(x, *rest)
            calls.append((watched, len(x), clock() - began_s, bytes_of(x) + bytes_of(y)))
            return y

        return timed

    def _keep(self, group: str, x: torch.Tensor) -> None:
        if x.nbytes > _KEEP_ONE_BYTES or self._kept_bytes + x.nbytes > _KEEP_BYTES:
            return
        kept = self.inputs[group, bucket_of(x.shape[0])]
        if len(kept) < _KEEP_EACH:
            kept.append(x.clone())
            self._kept_bytes += x.nbytes

    def _detach(self, rows: int, taken_s: float, *, pure: bool) -> None:
        began_s = self._clock()
        for watched in self._open:
            del watched.module.forward
        self._open = []
        self.sampled += 1
        self._sampled_s[pure] += taken_s
        for watched, count, call_s, moved in self._calls:
            spent = self._spent[watched.group, bucket_of(count), pure]
            spent.calls += 1
            spent.time_s += call_s
            spent.least_s = min(spent.least_s, call_s)
            weights = watched.weights
            spent.cost += Cost(weights.flops * count, weights.bytes_read + moved, 0)
        self._calls = []
        kind = self.by_rows[rows] if pure else self.mixed
        like_s = statistics.median(kind.recent_s) if kind.recent_s else taken_s
        own_s = self._clock() - began_s
        excess_s = max(0.0, taken_s - like_s) + own_s if pure else self._attached_s + own_s
        self.excess_s += excess_s
        kind.steps += 1
        kind.time_s += taken_s
        if kind.recent_s:
            wanted = int(excess_s / (self._share * max(like_s, 1e-9))) + 1
            least = _LEAST_EVERY if pure else _LEAST_EVERY // 4
            self._every[pure] = max(least, min(4096, (3 * self._every[pure] + wanted) // 4))
        self._until[pure] = self._every[pure]


def bytes_of(value: Any) -> int:
    """Of a tensor, or of a tuple of them."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(bytes_of(v) for v in value) if isinstance(value, tuple) else 0


def _watchable(modules: Mapping[str, nn.Module]) -> list[_Watched]:
    """Modules that do something: containers are not called, and what stands behind a guard is its affair."""
    inside: set[str] = set()
    for name, module in modules.items():
        if hasattr(module, "exchange"):
            inside.update(f"{name}.{inner}" for inner, _ in module.named_modules() if inner)
    found = []
    for name, module in modules.items():
        if isinstance(module, nn.ModuleList) or name in inside:
            continue
        if isinstance(module.__dict__.get("forward"), object) and "forward" in module.__dict__:
            continue  # somebody else watches it
        found.append(_Watched(name, group_of(name) if name != DECODE else DECODE, module, weights_of(module)))
    return found


def weights_of(module: nn.Module) -> Cost:
    """FLOPs of a module for one row, and the bytes of its matrices."""
    tensors: Iterable[torch.Tensor] = {
        t.data_ptr(): t for t in (*module.parameters(), *module.buffers()) if t.dim() > 0
    }.values()
    matrices = [t for t in tensors if t.dim() == 2]
    if isinstance(module, nn.Embedding):
        return Cost(0, 0, 0)
    return Cost(2 * sum(t.numel() for t in matrices), sum(t.nbytes for t in matrices), 0)


def measure_peaks(threads: int, working_set_bytes: int = 16 << 20) -> Peaks:
    """What this machine does on so many threads of the caller: a product of matrices, and a sum over memory."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a = torch.rand(256, 256)
        memory = torch.rand(max(working_set_bytes, 1 << 20) // 4)
        product_s = _least_s(lambda: a @ a, 12)
        read_s = _least_s(memory.sum, 6)
    finally:
        torch.set_num_threads(before)
    return Peaks(2 * 256**3 / product_s, memory.nbytes / read_s)


def _least_s(work: Callable[[], object], runs: int) -> float:
    taken = []
    for _ in range(runs):
        began_s = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began_s)
    return min(taken)
