"""Which stretches of a graph to run in slices, and in how many: the lowest peak for the work allowed.

Places between two operations where little is live are where a region may begin and end. Every window between two of
them is costed for 2, 3, 4, 6, ... slices: its peak (what was live before, its outputs, and one slice) and the FLOPs that
slices add. A peak can be had if windows and uncut stretches that stay below it lead from the first operation to the
last with no more work than allowed (dynamic programming); the least such peak is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from execution.graph.form import Graph
from execution.passes.memory_order import order_problem
from execution.passes.memory_reuse import with_reuse
from execution.passes.order_problem import OrderProblem, live_bytes
from execution.passes.slice_makers import ByteMaker
from execution.passes.slice_region import Region
from execution.passes.slice_rules import Track, tracked

_PLACES = 24
_DIMENSIONS = (0, 2)
_SLICES = (2, 3, 4, 6, 8, 12, 16, 32, 64)
_OPERATIONS = 1_000
"""In all slices of a region, at most: each costs some microseconds."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A region in slices."""

    region: Region
    slices: int
    first: int
    last: int
    """Operations from the first to before the last, in the graph's order."""
    peak_bytes: int
    extra_flops: float

    @property
    def key(self) -> tuple[object, ...]:
        """Which cut it is."""
        return self.first, self.last, self.slices, self.region.track.dimension


@dataclass(frozen=True, slots=True)
class _Way:
    """How to get to a place: the work that it took and the last step."""

    work: float
    start: int
    cut: Cut | None


class SliceSearch:
    """Of one graph in its order."""

    def __init__(self, graph: Graph, *, work: float, most: int) -> None:
        self._graph, self._most = graph, most
        self._problem: OrderProblem = with_reuse(graph, order_problem(graph))
        self._curve = live_bytes(self._problem, self._problem.program)
        self._after = _after(self._problem)
        self._allowed = (work - 1.0) * graph.total_cost().flops
        self._tracks = [tracked(graph, dimension) for dimension in _DIMENSIONS]
        self._refused: set[tuple[str, int, int]] = set()

    def refuse(self, names: set[str], cut: Cut) -> None:
        """Not to be cut in so many slices again."""
        self._refused |= {(name, cut.region.track.dimension, cut.slices) for name in names}

    def best(self) -> list[Cut]:
        """The cuts of the lowest peak, in order; none where no cut helps."""
        usable = [cut for cut in self._cuts if not self._barred(cut)]
        peaks = sorted({cut.peak_bytes for cut in usable} | set(self._curve))
        low, high = 0, len(peaks) - 1
        found: list[Cut] | None = None
        while low <= high:
            middle = (low + high) // 2
            way = self._within(peaks[middle], usable)
            if way is None:
                low = middle + 1
            else:
                found, high = way, middle - 1
        return found or []

    def _barred(self, cut: Cut) -> bool:
        dimension = cut.region.track.dimension
        return any((node.name, dimension, cut.slices) in self._refused for node in cut.region.nodes)

    def _within(self, peak: int, cuts: Sequence[Cut]) -> list[Cut] | None:
        """Cuts of least work such that nothing is above the peak; None: there is no way, or too much work."""
        ends: dict[int, list[Cut]] = {}
        for cut in cuts:
            if cut.peak_bytes <= peak:
                ends.setdefault(cut.last, []).append(cut)
        ways = {0: _Way(0.0, 0, None)}
        for place in range(1, len(self._curve) + 1):
            steps = []
            if place - 1 in ways and self._curve[place - 1] <= peak:
                steps.append(_Way(ways[place - 1].work, place - 1, None))
            steps += [
                _Way(ways[cut.first].work + cut.extra_flops, cut.first, cut)
                for cut in ends.get(place, ())
                if cut.first in ways
            ]
            if steps:
                ways[place] = min(steps, key=lambda way: way.work)
        if len(self._curve) not in ways or ways[len(self._curve)].work > self._allowed:
            return None
        found, place = [], len(self._curve)
        while place:
            way = ways[place]
            found += [way.cut] if way.cut is not None else []
            place = way.start
        return found[::-1]

    @cached_property
    def _cuts(self) -> list[Cut]:
        places = self._places()
        least = max(self._curve, default=0) // 2  # what stays below is left as it is
        found = []
        for track in self._tracks:
            run = self._runs(track)
            for at, first in enumerate(places):
                for last in places[at + 1 :]:
                    if last > run[first]:
                        break
                    if last - first > 1 and max(self._curve[first:last]) > least:
                        found += self._window(track, first, last)
        return found

    def _window(self, track: Track, first: int, last: int) -> list[Cut]:
        names = [node.name for node in self._graph.calls[first:last]]
        region = Region.of(self._graph, track, names)
        if region is None:
            return []
        before = self._after[first - 1] if first else 0
        whole = sum(self._graph.cost(name).flops for name in names)
        found = []
        most = min(self._most, region.most_slices(), _OPERATIONS // len(names))
        for slices in _SLICES:
            if slices > most:
                break
            maker = ByteMaker(region)
            region.run(maker, slices, only=(0, slices // 2))
            peak = before + maker.peak_bytes
            if peak < max(self._curve[first:last]):
                found.append(Cut(region, slices, first, last, peak, max(0.0, region.work(slices) - whole)))
        return found

    def _runs(self, track: Track) -> list[int]:
        """For each operation the end of the stretch from it on in which all can be cut."""
        calls = self._graph.calls
        ends = [0] * (len(calls) + 1)
        ends[len(calls)] = len(calls)
        for i in range(len(calls) - 1, -1, -1):
            ends[i] = ends[i + 1] if calls[i].name in track.rules else i
            if ends[i] == len(calls) and calls[i].name not in track.rules:
                ends[i] = i
        return ends

    def _places(self) -> list[int]:
        """Where little is live: the ends, and the lowest place of each of some equal stretches."""
        n = len(self._after)
        inner = range(1, n)
        parts = min(_PLACES, len(inner))
        lowest = [
            min(
                inner[i * len(inner) // parts : (i + 1) * len(inner) // parts],
                key=lambda p: self._after[p - 1],
            )
            for i in range(parts)
        ]
        return sorted({0, n, *lowest})


def _after(problem: OrderProblem) -> list[int]:
    """Bytes live after each operation of program order."""
    done = live = 0
    found = []
    for i in problem.program:
        done |= 1 << i
        live += problem.size[i] - problem.freed_after(i, done)
        found.append(live)
    return found
