"""One request on its way through the dispatcher: from its acceptance to its one record."""

from __future__ import annotations

from execution.replicas.continuation import Continuation
from execution.replicas.deadline import Deadline
from loop.contracts import EngineOutput, Finish, Request, RequestRecord, ServeRequest


class Ticket:
    """Mutable state of one request. Times are seconds after the origin, -1.0 where it never came so far."""

    __slots__ = (
        "arrival_s",
        "attempts",
        "avoided",
        "cached_tokens",
        "continuation",
        "deadline",
        "first_token_s",
        "hashes",
        "held",
        "last_token_s",
        "moving",
        "number",
        "queued_s",
        "refused",
        "replica",
        "request",
        "retries",
        "scheduled_s",
        "sent",
        "token_ids",
    )

    def __init__(self, request: ServeRequest, number: int, arrival_s: float, hashes: tuple[int, ...]) -> None:
        self.request = request
        self.deadline = Deadline(request.deadline_s)
        self.number = number
        self.arrival_s = arrival_s
        self.hashes = hashes
        """Of the prompt's blocks."""
        self.queued_s = self.scheduled_s = self.first_token_s = self.last_token_s = -1.0
        self.token_ids: list[int] = []
        """The answer so far."""
        self.sent: list[str] = []
        """Its text as the client has it."""
        self.continuation: Continuation | None = None
        """Makes the text, once a replica was lost."""
        self.cached_tokens = 0
        self.replica = -1
        self.attempts = 0
        """How often it was sent to a replica."""
        self.retries = 0
        """How often it lost one."""
        self.avoided: set[int] = set()
        """Replicas whose queue was full, or that were draining, since it was last sent."""
        self.refused: dict[int, str] = {}
        """Replica -> why it can never serve this."""
        self.held = False
        """Waits for a replica."""
        self.moving = False
        """Being taken back from a queue, to be sent anew."""

    @property
    def input_tokens(self) -> int:
        """Of the prompt."""
        return len(self.request.prompt_token_ids)

    def sent_to(self, replica: int, now_s: float) -> None:
        """It enters the queue of a replica."""
        self.replica = replica
        self.attempts += 1
        self.moving = False
        if not self.token_ids:
            self.queued_s, self.scheduled_s = now_s, -1.0

    def took(self, output: EngineOutput, now_s: float, origin_s: float) -> None:
        """Something has come."""
        if self.scheduled_s < 0.0 < output.scheduled_s:
            self.scheduled_s = output.scheduled_s - origin_s
        if output.token_ids:
            if not self.token_ids:
                self.first_token_s = now_s
                self.cached_tokens = output.cached_tokens
            self.last_token_s = now_s
            self.token_ids += output.token_ids

    def record(self, finish: Finish) -> RequestRecord:
        """Its life."""
        scheduled_s = self.scheduled_s
        if scheduled_s < 0.0 <= self.first_token_s:
            scheduled_s = self.queued_s  # the engine does not tell
        return RequestRecord(
            self.number,
            self.request.model,
            finish,
            self.arrival_s,
            self.queued_s,
            scheduled_s,
            self.first_token_s,
            self.last_token_s,
            self.input_tokens,
            len(self.token_ids),
            self.cached_tokens,
            self.replica,
            0,
            self.retries,
        )

    def as_workload(self) -> Request:
        """As the twin replays it."""
        return Request(
            self.number,
            self.arrival_s,
            self.request.model,
            self.input_tokens,
            max(1, len(self.token_ids)),
            self.hashes,
            self.request.tier,
        )
