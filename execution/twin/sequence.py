"""One request inside the data plane: what is known of it between its arrival and its record."""

from __future__ import annotations

from typing import Any

from loop.contracts import Finish, Request, RequestRecord

_new_record = tuple.__new__


class Sequence:
    """Mutable state of one request. Times are seconds of virtual time, -1.0 where it never came so far."""

    __slots__ = (
        "admitted",
        "blocks",
        "cached",
        "computed",
        "finish_step",
        "first_token_s",
        "generated",
        "hashed",
        "number",
        "offset",
        "over",
        "overrun",
        "predicted",
        "preemptions",
        "priority",
        "queued_s",
        "refs",
        "request",
        "resident",
        "retries",
        "scheduled_s",
        "shared",
        "target",
        "todo",
    )

    def __init__(self, request: Request, number: int) -> None:
        self.request = request
        self.number = number
        """Order of arrival at the gateway: breaks ties."""
        self.retries = 0
        self.preemptions = 0
        self.predicted = 1
        self.priority = 0.0
        self.restart()

    def restart(self) -> None:
        """Forget every attempt so far: the request is back at the gateway."""
        self.queued_s = self.scheduled_s = self.first_token_s = -1.0
        self.computed = 0
        """Tokens whose KV is held (while not decoding; then it is `offset + step` of the engine)."""
        self.generated = 0
        """Output tokens emitted when it last began to decode."""
        self.target = self.request.input_tokens
        """Tokens to prefill: the prompt, and after a preemption what had been generated."""
        self.cached = 0
        self.blocks = 0
        """KV blocks that its prefill holds, shared ones included."""
        self.shared = 0
        """KV blocks among them that belong to the prefix cache."""
        self.hashed = 0
        """Prompt blocks offered to the prefix cache so far."""
        self.refs: list[int] | None = None
        """Hashes of the prefix blocks it pins."""
        self.resident = False
        """Its KV was transferred here: it joins the decode batch without prefill."""
        self.offset = 0
        self.finish_step = 0
        self.admitted = 0
        self.overrun = 0
        self.over = False
        self.todo = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Sequence:
        twin = Sequence.__new__(Sequence)
        memo[id(self)] = twin
        for name in Sequence.__slots__:
            setattr(twin, name, getattr(self, name))
        if self.refs is not None:
            twin.refs = list(self.refs)
        return twin

    def record(self, finish: Finish, last_token_s: float, replica: int) -> RequestRecord:
        """The life of the request, now that it is over. `replica` is -1 when none served it."""
        request = self.request
        return _new_record(
            RequestRecord,
            (
                request.id,
                request.model,
                finish,
                request.arrival_s,
                self.queued_s,
                self.scheduled_s,
                self.first_token_s,
                last_token_s,
                request.input_tokens,
                request.output_tokens,
                self.cached,
                replica,
                self.preemptions,
                self.retries,
            ),
        )
