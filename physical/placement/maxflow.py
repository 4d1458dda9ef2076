"""Maximum flow by shortest augmenting paths on a layered graph (Dinic, 1970), for capacities that are floats."""

from __future__ import annotations

import math
from collections import deque


class FlowNetwork:
    """Vertices 0..n-1 and arcs with capacities; `solve` leaves the flow on the arcs."""

    def __init__(self, vertices: int) -> None:
        self._out: list[list[int]] = [[] for _ in range(vertices)]
        self._head: list[int] = []
        self._left: list[float] = []
        self._capacity: list[float] = []
        self._eps = 0.0

    def add(self, a: int, b: int, capacity: float) -> int:
        """An arc; returns its number."""
        number = len(self._head)
        self._out[a].append(number)
        self._out[b].append(number + 1)
        self._head += (b, a)
        self._left += (capacity, 0.0)
        self._capacity += (capacity, 0.0)
        return number

    def flow(self, arc: int) -> float:
        """What flows through an arc; 0 below the resolution of the arithmetic."""
        value = self._left[arc ^ 1]
        return value if value > self._eps else 0.0

    def solve(self, source: int, sink: int) -> float:
        """The most that flows from source to sink; infinite where an unlimited path joins them."""
        finite = [c for c in self._capacity if 0.0 < c < math.inf]
        # A residual this small is rounding: following it would never end.
        self._eps = 1e-12 * max(finite, default=1.0)
        total = 0.0
        while (levels := self._levels(source, sink)) is not None:
            ahead = [0] * len(self._out)
            while (pushed := self._augment(source, sink, levels, ahead)) > 0.0:
                total += pushed
                if math.isinf(pushed):
                    return math.inf
        return total

    def reachable(self, source: int) -> set[int]:
        """Vertices on the source's side of the minimum cut, after `solve`."""
        seen, queue = {source}, deque([source])
        while queue:
            for arc in self._out[queue.popleft()]:
                head = self._head[arc]
                if head not in seen and self._left[arc] > self._eps:
                    seen.add(head)
                    queue.append(head)
        return seen

    def reaching(self, sink: int) -> set[int]:
        """Vertices from which the sink can still be reached, after `solve`."""
        seen, queue = {sink}, deque([sink])
        while queue:
            for arc in self._out[queue.popleft()]:
                tail = self._head[arc]
                if tail not in seen and self._left[arc ^ 1] > self._eps:
                    seen.add(tail)
                    queue.append(tail)
        return seen

    def _levels(self, source: int, sink: int) -> list[int] | None:
        levels = [-1] * len(self._out)
        levels[source] = 0
        queue = deque([source])
        left, head, eps = self._left, self._head, self._eps
        while queue:
            vertex = queue.popleft()
            for arc in self._out[vertex]:
                target = head[arc]
                if levels[target] < 0 and left[arc] > eps:
                    levels[target] = levels[vertex] + 1
                    queue.append(target)
        return levels if levels[sink] >= 0 else None

    def _augment(self, source: int, sink: int, levels: list[int], ahead: list[int]) -> float:
        """Push along one path of the layered graph; 0 when there is none left."""
        path: list[int] = []
        vertex = source
        left, head, out, eps = self._left, self._head, self._out, self._eps
        while vertex != sink:
            arcs = out[vertex]
            while ahead[vertex] < len(arcs):
                arc = arcs[ahead[vertex]]
                if left[arc] > eps and levels[head[arc]] == levels[vertex] + 1:
                    break
                ahead[vertex] += 1
            else:
                if not path:
                    return 0.0
                vertex = head[path.pop() ^ 1]
                ahead[vertex] += 1
                continue
            path.append(arc)
            vertex = head[arc]
        amount = min(left[arc] for arc in path)
        for arc in path:
            left[arc] -= amount
            left[arc ^ 1] += amount
        return amount
