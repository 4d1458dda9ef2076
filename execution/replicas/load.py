"""What a replica holds now, by the count of the one who sends it requests."""

from __future__ import annotations


class Flight:
    """One request on one replica."""

    __slots__ = ("context_tokens", "left_tokens", "prompt_tokens", "started", "uncached_tokens")

    def __init__(self, prompt_tokens: int, uncached_tokens: int, predicted_tokens: float) -> None:
        self.prompt_tokens = prompt_tokens
        self.uncached_tokens = uncached_tokens
        self.left_tokens = max(predicted_tokens, 1.0)
        """Predicted output still to come; at least 1."""
        self.context_tokens = 0
        """Tokens that hold KV cache; 0 until its first token came."""
        self.started = False


class Load:
    """Sums over the flights of one replica, kept up to date token by token."""

    __slots__ = ("in_flight", "kv_tokens", "outstanding_tokens", "started", "waiting_tokens")

    def __init__(self) -> None:
        self.in_flight = 0
        self.started = 0
        """Flights whose first token has come."""
        self.waiting_tokens = 0
        """Prompt tokens of the others, without those that its prefix cache should hold."""
        self.kv_tokens = 0
        self.outstanding_tokens = 0.0

    def enter(self, flight: Flight) -> None:
        """A request is sent."""
        self.in_flight += 1
        self.waiting_tokens += flight.uncached_tokens
        self.outstanding_tokens += flight.left_tokens

    def progress(self, flight: Flight, tokens: int) -> None:
        """So many tokens have come."""
        if not flight.started:
            flight.started = True
            self.started += 1
            self.waiting_tokens -= flight.uncached_tokens
            flight.context_tokens = flight.prompt_tokens
            self.kv_tokens += flight.prompt_tokens
        flight.context_tokens += tokens
        self.kv_tokens += tokens
        left = max(flight.left_tokens - tokens, 1.0)
        self.outstanding_tokens += left - flight.left_tokens
        flight.left_tokens = left

    def leave(self, flight: Flight) -> None:
        """It is over, or was lost."""
        self.in_flight -= 1
        self.outstanding_tokens -= flight.left_tokens
        if flight.started:
            self.started -= 1
            self.kv_tokens -= flight.context_tokens
        else:
            self.waiting_tokens -= flight.uncached_tokens
        if not self.in_flight:
            self.outstanding_tokens = 0.0  # rounding ends here
