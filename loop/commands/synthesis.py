"""Options that choose who writes candidates: the built-in synthesiser, language models, or both."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from loop.commands.failing import InputError
from loop.compose.objective import Objective
from loop.contracts import Exchange, Synthesiser
from strategy.evolve.synthesise.builtin import BuiltinSynthesiser

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"


class Kind(StrEnum):
    """Who writes candidates."""

    BUILTIN = "builtin"  # syntax-tree edits, idioms, CMA-ES: no key, no network
    LLM = "llm"  # any OpenAI-compatible endpoint
    MIXED = "mixed"  # both: the built-in one fills the time that answers take


SynthesiserKind = Annotated[
    Kind, typer.Option("--synthesiser", help="builtin: no key, no network; llm: an endpoint; mixed: both.")
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        "--base-url", metavar="URL", help="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1."
    ),
]
LanguageModels = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Language model of the endpoint; several share the questions as their answers deserve.",
    ),
]
Prices = Annotated[
    list[str] | None,
    typer.Option(
        "--price",
        metavar="IN/OUT",
        help="US dollars for a million prompt and completion tokens: once for all, or once a --model, in order.",
    ),
]
KeyVariable = Annotated[
    str, typer.Option("--api-key-env", metavar="VAR", help="Environment variable that holds the key.")
]
TokenBudget = Annotated[int | None, typer.Option("--token-budget", min=1, help="Tokens at most, in and out.")]
UsdBudget = Annotated[float | None, typer.Option("--usd-budget", min=0.0, help="US dollars at most.")]
InFlight = Annotated[int, typer.Option("--in-flight", min=1, max=256, help="Questions under way at a time.")]
AnswerSeconds = Annotated[
    float, typer.Option("--answer-s", min=1.0, help="Wall seconds that one answer may take.")
]
MaxOutputTokens = Annotated[
    int,
    typer.Option(
        "--max-output-tokens",
        min=256,
        help="Longest answer, reasoning included; more for models that think long before they write.",
    ),
]


@dataclass(frozen=True, slots=True)
class SynthesisOptions:
    """What the user gave, option by option."""

    synthesiser: SynthesiserKind = Kind.BUILTIN
    base_url: BaseUrl = None
    model: LanguageModels = None
    price: Prices = None
    api_key_env: KeyVariable = DEFAULT_KEY_VARIABLE
    token_budget: TokenBudget = None
    usd_budget: UsdBudget = None
    in_flight: InFlight = 4
    answer_s: AnswerSeconds = 180.0
    max_output_tokens: MaxOutputTokens = 4096

    @property
    def kind(self) -> Kind:
        """Who writes candidates."""
        return self.synthesiser

    @property
    def models(self) -> tuple[str, ...]:
        """The language models."""
        return tuple(self.model or ())

    @property
    def prices(self) -> tuple[str, ...]:
        """What they charge, as text."""
        return tuple(self.price or ())

    def check(self) -> None:
        """Raise InputError for what cannot work, before anything is opened."""
        if self.kind is Kind.BUILTIN:
            if self.base_url or self.models:
                raise InputError(
                    "--base-url and --model are for language models: add --synthesiser llm or mixed "
                    "(the served model is --serve)"
                )
            return
        if not self.base_url:
            raise InputError(f"--synthesiser {self.kind} needs --base-url, e.g. http://localhost:8000/v1")
        if not self.models:
            raise InputError(f"--synthesiser {self.kind} needs --model: a model that {self.base_url} lists")
        if len(self.prices) not in (0, 1, len(self.models)):
            raise InputError(
                f"{len(self.prices)} times --price for {len(self.models)} models: give one, or one each"
            )
        for price in self.prices:
            _price(price)
        if self.usd_budget is not None and not self.prices:
            raise InputError("--usd-budget needs --price IN/OUT: what a million tokens cost")
        if self.api_key_env != DEFAULT_KEY_VARIABLE and not os.environ.get(self.api_key_env):
            raise InputError(f"--api-key-env {self.api_key_env}: no such variable in the environment")
        if importlib.util.find_spec("openai") is None:
            raise InputError("--synthesiser llm needs the package openai: pip install 'autopoiesis[llm]'")


GOALS = {
    Objective.TIME: "total execution time: serving, reconfiguration and solve time of all windows, in seconds",
    Objective.GOODPUT: "requests within the SLO first (a window that misses all weighs 100), then mean latency in "
    "seconds, then a tenth of the TTFT p99",
    Objective.COST: "US dollars for devices and energy, and a steep price for more than 1 % of requests out of SLO",
}
"""What the objective is, in words, for language models."""


def make_synthesiser(
    choice: SynthesisOptions,
    objective: Objective,
    seed: int,
    record: Callable[[Exchange], None],
    deadline_s: float | None = None,
) -> Synthesiser:
    """The synthesiser of this choice, which asks nothing more of a language model `deadline_s` after its first
    question. Raises InputError for a value that it refuses."""
    choice.check()
    if choice.kind is Kind.BUILTIN:
        return BuiltinSynthesiser(seed=seed)
    from strategy.evolve.synthesise.llm import (  # noqa: PLC0415  openai is slow to import
        LlmConfig,
        LlmConfigError,
        LlmModel,
        LlmSynthesiser,
    )

    prices = [_price(p) for p in choice.prices] or [(0.0, 0.0)]
    if len(prices) == 1:
        prices *= len(choice.models)
    try:
        config = LlmConfig(
            base_url=choice.base_url or "",
            models=tuple(LlmModel(n, *price) for n, price in zip(choice.models, prices, strict=True)),
            api_key=os.environ.get(choice.api_key_env, ""),
            in_flight=choice.in_flight,
            timeout_s=choice.answer_s,
            token_budget=choice.token_budget,
            usd_budget=choice.usd_budget,
            max_output_tokens=choice.max_output_tokens,
            deadline_s=deadline_s,
            # beside the quick one nobody waits for an answer
            wait_s=0.0 if choice.kind is Kind.MIXED else 1.0,
        )
        llm = LlmSynthesiser(config, seed=seed, record=record, goal=GOALS[objective])
    except LlmConfigError as error:
        raise InputError(f"--synthesiser {choice.kind}: {error}") from error
    if choice.kind is Kind.LLM:
        return llm
    from strategy.evolve.synthesise.mixed import MixedSynthesiser  # noqa: PLC0415

    return MixedSynthesiser(llm, BuiltinSynthesiser(seed=seed))


def _price(text: str) -> tuple[float, float]:
    """(dollars a million prompt tokens, dollars a million completion tokens)."""
    try:
        prompt, completion = (float(part) for part in text.split("/"))
    except ValueError:
        raise InputError(f"--price {text}: must be two numbers with / between, e.g. 0.15/0.60") from None
    if not (0.0 <= prompt < 1e6 and 0.0 <= completion < 1e6):
        raise InputError(f"--price {text}: prices lie between 0 and a million dollars")
    return prompt, completion
