"""From live traffic to windows: what the twin is asked about is what really arrived.

A window's requests are known when it ends, except for the answers under way: their length is estimated, and put right
at the end of the next window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from loop.contracts import Finish, Observation, Policy, Request, RequestRecord, Window, WindowResult
from loop.runner.evolution import BackgroundEvolution


def live_windows(window_s: float, stopping: Callable[[], bool]) -> Iterator[Window]:
    """Windows without end, until somebody stops; empty, since nobody knows what will arrive."""
    index = 0
    while index == 0 or not stopping():
        yield Window(index, index * window_s, (index + 1) * window_s, ())
        index += 1


class WindowBook:
    """Requests by the window in which they arrived. Times are the plane's."""

    def __init__(self) -> None:
        self._over: dict[int, Request] = {}
        """That are over and arrived in the window that runs or in the one before, by id."""
        self._means: dict[str, tuple[float, int]] = {}
        """Model -> (sum of output tokens, answers)."""

    def over(self, request: Request, finish: Finish) -> None:
        """A request is over. Where its answer is whole, or nobody wanted more of it, its length is the true one."""
        if finish is Finish.INFEASIBLE:
            return
        self._over[request.id] = request
        if finish is Finish.CANCELLED:
            return
        if finish is not Finish.OK:  # it was asked for, and will be again
            self._over[request.id] = self._guessed(request)
            return
        tokens, count = self._means.get(request.model, (0.0, 0))
        self._means[request.model] = (tokens + request.output_tokens, count + 1)

    def fill(self, window: Window, origin_s: float, open_requests: Iterable[Request] = ()) -> Window:
        """The window with its requests, in trace time. `open_requests` are under way, with the tokens that they have
        so far."""
        start_s, end_s = window.start_s + origin_s, window.end_s + origin_s
        found = [r for r in self._over.values() if start_s <= r.arrival_s < end_s]
        found += [
            self._guessed(r)
            for r in open_requests
            if start_s <= r.arrival_s < end_s and r.id not in self._over
        ]
        found.sort(key=lambda r: (r.arrival_s, r.id))
        return replace(window, requests=tuple(r._replace(arrival_s=r.arrival_s - origin_s) for r in found))

    def forget_before(self, at_s: float) -> None:
        """What arrived earlier is of no use any more."""
        self._over = {number: r for number, r in self._over.items() if r.arrival_s >= at_s}

    def _guessed(self, request: Request) -> Request:
        """An answer under way is at least as long as it is now, and as a rule as long as others."""
        tokens, count = self._means.get(request.model, (0.0, 0))
        mean = round(tokens / count) if count else 0
        return request._replace(output_tokens=max(1, request.output_tokens, mean))


class LiveSource:
    """Evolution beside live traffic, as the controller sees it: a PolicySourcePort and KillSwitch. All in the
    controller's thread."""

    def __init__(
        self,
        evolution: BackgroundEvolution,
        book: WindowBook,
        *,
        origin_s: Callable[[], float],
        open_requests: Callable[[], Iterable[Request]],
    ) -> None:
        """`origin_s`: the plane's time of trace time 0."""
        self._evolution = evolution
        self._book = book
        self._origin_s = origin_s
        self._open_requests = open_requests
        self._before: Window | None = None

    def next_policy(self, obs: Observation) -> Policy | None:
        """See BackgroundEvolution."""
        return self._evolution.next_policy(obs)

    def urgent_policy(self, obs: Observation) -> Policy | None:
        """See BackgroundEvolution."""
        return self._evolution.urgent_policy(obs)

    def window_ended(self, window: Window, result: WindowResult, obs: Observation) -> None:
        """Tell evolution what was in the window, and what more is known of the one before."""
        origin_s, still_open = self._origin_s(), tuple(self._open_requests())
        if self._before is not None:
            self._evolution.amend(self._book.fill(self._before, origin_s, still_open))
        self._evolution.window_ended(self._book.fill(window, origin_s, still_open), result, obs)
        self._before = window
        self._book.forget_before(window.start_s + origin_s)

    def finished(self, record: RequestRecord) -> None:
        """A request is over. Whose client went away says nothing of either arm of a canary."""
        if record.finish is Finish.CANCELLED:
            record = record._replace(finish=Finish.INFEASIBLE)
        self._evolution.finished(record)
