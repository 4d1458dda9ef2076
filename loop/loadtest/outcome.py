"""What became of one request of a load test."""

from __future__ import annotations

from typing import NamedTuple

OK = ""
CLIENT_LIMIT = "client limit"
"""Not sent: the client had as many requests in flight as it may."""
CANCELLED = "cancelled"
"""In flight when the test was ended by hand."""


class Outcome(NamedTuple):
    """Times in seconds since the test began; -1.0 where it never came so far."""

    id: int
    due_s: float
    """When the workload wanted it sent."""
    sent_s: float
    first_s: float
    """First piece with something of the answer."""
    last_s: float
    """Last such piece."""
    done_s: float
    """End of the answer, or of waiting for it."""
    wanted_input_tokens: int
    wanted_output_tokens: int
    input_tokens: int
    """As the server counted them; as wanted where it does not say."""
    output_tokens: int
    """As the server counted them; else the pieces that came."""
    pieces: int
    error: str = OK
    """In a word or two, for a table; empty: answered."""
    detail: str = ""
    """What the server said, shortened."""

    @property
    def ttft_s(self) -> float:
        """From sending to the first piece."""
        return self.first_s - self.sent_s

    @property
    def e2e_s(self) -> float:
        """From sending to the last piece."""
        return self.last_s - self.sent_s

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first; 0 of a single one."""
        if self.output_tokens < 2:
            return 0.0
        return (self.last_s - self.first_s) / (self.output_tokens - 1)

    @property
    def lag_s(self) -> float:
        """How much later than wanted it was sent: the client's fault."""
        return self.sent_s - self.due_s
