"""What the `llm` synthesiser is told: endpoint, models, budget, patience. Frozen, and checked when made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from urllib.parse import urlsplit


class LlmConfigError(ValueError):
    """The configuration cannot work; one line that names the field and the way out."""


@dataclass(frozen=True, slots=True)
class LlmModel:
    """A model of the endpoint, and what it charges.

    Raises:
        LlmConfigError: an empty name, or a price that is negative or no number.
    """

    name: str
    """As the endpoint calls it."""
    usd_per_million_input: float = 0.0
    """US dollars for a million prompt tokens."""
    usd_per_million_output: float = 0.0
    """US dollars for a million completion tokens."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise LlmConfigError("a model needs a name: the one that the endpoint lists under /models")
        for what in ("usd_per_million_input", "usd_per_million_output"):
            _not_negative(f"{what} of {self.name}", getattr(self, what))

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost."""
        return (
            prompt_tokens * self.usd_per_million_input + completion_tokens * self.usd_per_million_output
        ) / 1e6


@dataclass(frozen=True, slots=True)
class LlmConfig:
    """Endpoint, models and limits of the `llm` synthesiser.

    Raises:
        LlmConfigError: a value that cannot work; the message never holds the key.
    """

    base_url: str
    """Of an OpenAI-compatible API, e.g. `http://localhost:8000/v1`."""
    models: tuple[LlmModel, ...]
    """At least one; which one is asked follows what its answers have been worth for their cost."""
    api_key: str = field(default="", repr=False)
    """Bearer token; empty: the endpoint wants none."""
    in_flight: int = 4
    """Questions under way at a time."""
    timeout_s: float = 180.0
    """Wall seconds from sending a request to the last byte of its answer."""
    max_output_tokens: int = 4096
    """Longest answer, reasoning included."""
    max_prompt_tokens: int = 12_000
    """Estimated length of a first prompt; the least important of it is left out to keep this."""
    temperature: float = 0.8
    """Sampling temperature; left out for models that refuse it."""
    token_budget: int | None = None
    """Prompt and completion tokens together, over the synthesiser's life; None: no limit."""
    usd_budget: float | None = None
    """US dollars at the models' prices, over the synthesiser's life; None: no limit."""
    deadline_s: float | None = None
    """Seconds after the first `ask` from which on nothing more is sent; None: no limit."""
    retries: int = 3
    """Further attempts at a request that failed for a reason that passes."""
    backoff_s: float = 1.0
    """Mean pause before the first further attempt; it doubles with each one."""
    backoff_cap_s: float = 60.0
    """Longest pause between two attempts; an endpoint that asks for a longer one is left alone that long."""
    breaker_failures: int = 4
    """Failures of the endpoint in a row after which only one request at a time probes it, after a pause."""
    breaker_pause_s: float = 10.0
    """First pause before such a probe; it doubles with each one that fails, up to `breaker_cap_s`."""
    breaker_cap_s: float = 300.0
    """Longest pause before a probe."""
    diff_share: float = 0.6
    """Share of questions that ask for SEARCH/REPLACE blocks; the others ask for a whole module."""
    wait_s: float = 1.0
    """How long `ask` waits for an answer when none is ready; 0: never (right beside a quick synthesiser)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "api_key", self.api_key.strip())
        _check_url(self.base_url)
        _check_key(self.api_key)
        if not self.models:
            raise LlmConfigError("models: name at least one")
        names = [model.name for model in self.models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise LlmConfigError(f"models: {', '.join(twice)} is named twice")
        for what in ("in_flight", "max_output_tokens", "max_prompt_tokens", "breaker_failures"):
            if getattr(self, what) < 1:
                raise LlmConfigError(f"{what} must be at least 1, not {getattr(self, what)}")
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise LlmConfigError(f"timeout_s must be more than 0, not {self.timeout_s}")
        for what in ("retries", "backoff_s", "backoff_cap_s", "breaker_pause_s", "breaker_cap_s", "wait_s"):
            _not_negative(what, getattr(self, what))
        for what in ("token_budget", "usd_budget", "deadline_s"):
            if getattr(self, what) is not None:
                _not_negative(what, getattr(self, what))
        if not 0.0 <= self.diff_share <= 1.0:
            raise LlmConfigError(f"diff_share must lie between 0 and 1, not {self.diff_share}")
        if not 0.0 <= self.temperature <= 2.0:
            raise LlmConfigError(f"temperature must lie between 0 and 2, not {self.temperature}")
        if self.usd_budget is not None and not any(model.usd(1, 1) > 0 for model in self.models):
            raise LlmConfigError(
                "usd_budget needs the models' prices: usd_per_million_input and usd_per_million_output"
            )


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        port_is_known = parts.port is None or parts.port >= 0
    except ValueError:  # its text may quote the URL, and that may hold a password
        parts, port_is_known = urlsplit(""), False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_known:
        raise LlmConfigError("base_url must be an http or https URL such as http://localhost:8000/v1")
    if parts.username or parts.password:
        raise LlmConfigError("base_url must not hold a user name or password: pass the key as api_key")


def _check_key(key: str) -> None:
    if any(not "!" <= character <= "~" for character in key):
        raise LlmConfigError("api_key holds blanks or characters that cannot stand in an HTTP header")


def _not_negative(what: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise LlmConfigError(f"{what} must be a number of at least 0, not {value}")
