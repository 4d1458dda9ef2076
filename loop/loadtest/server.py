"""The server under test: what it is called, which model it has, and what it takes; found out by asking it."""

from __future__ import annotations

import asyncio
import itertools
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from loop.loadtest.http1 import Client, HttpError, Origin
from loop.loadtest.prompts import Prompts
from loop.loadtest.stream import Stream, error_text

PROBE_WORDS = (16, 144)
"""Two prompts whose difference tells the tokens of a word, without those of a chat template."""
PROBE_TOKENS = 4
BUSY_TRIES, BUSY_WAIT_S = 5, 1.0
_BUSY = {429, 503}
_DENIED = {401, 403}


class TargetError(RuntimeError):
    """The server cannot be tested; the message says what it answered, and the way out."""


class Endpoint(StrEnum):
    """Where prompts go."""

    COMPLETIONS = "completions"
    CHAT = "chat"


@dataclass(frozen=True, slots=True)
class Traits:
    """What the server takes."""

    endpoint: Endpoint
    as_tokens: bool
    """Prompts as token ids: exact lengths."""
    ignore_eos: bool
    """Answers as long as the workload wants them, whatever the model says."""
    usage: bool
    """Counts of tokens at the end of a stream."""
    tokens_per_word: float = 1.0

    def body(self, model: str, prompt: str, max_tokens: int) -> bytes:
        """Body of a streamed request; `prompt` is JSON text already."""
        name = json.dumps(model)
        if self.endpoint is Endpoint.CHAT:
            asked = f'"messages":[{{"role":"user","content":{prompt}}}]'
        else:
            asked = f'"prompt":{prompt}'
        extras = ',"ignore_eos":true' if self.ignore_eos else ""
        extras += ',"stream_options":{"include_usage":true}' if self.usage else ""
        return f'{{"model":{name},{asked},"max_tokens":{max_tokens},"stream":true{extras}}}'.encode()

    @property
    def path(self) -> str:
        """Of the endpoint."""
        return "/v1/completions" if self.endpoint is Endpoint.COMPLETIONS else "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that has answered."""

    origin: Origin
    model: str
    max_model_len: int | None
    """Prompt and answer, tokens; None: it does not say."""
    traits: Traits


async def find_out(
    client: Client,
    *,
    model: str | None,
    endpoint: Endpoint | None = None,
    as_tokens: bool | None = None,
    timeout_s: float = 60.0,
) -> Server:
    """Ask a server for its model and try what it takes, by a few short requests. None: whatever it takes.

    Raises:
        TargetError: it does not answer, refuses the token, has no such model, or takes none of the endpoints.
    """
    name, longest = await _model(client, model, timeout_s)
    said, misread = "", False
    for traits in _candidates(endpoint, as_tokens=as_tokens):
        if traits.as_tokens and misread:
            continue
        prompts = Prompts(as_tokens=traits.as_tokens, block_tokens=16, salt=0)
        units = 8 if traits.as_tokens else PROBE_WORDS[0]
        try:
            usage = await _probe(client, traits, name, prompts.plain("probe", units), timeout_s)
        except _RefusedError as error:
            said = said or f"{traits.path}: {error}"
            continue
        counted = usage.get("prompt_tokens")
        if traits.as_tokens and isinstance(counted, int) and counted not in {units, units + 1}:
            said = said or f"{traits.path}: counts {counted} tokens in a prompt of {units} token ids"
            misread = True  # it took the ids for something else
            continue
        if not traits.as_tokens:
            long = prompts.plain("probe-long", PROBE_WORDS[1])
            told = await _told_tokens(client, traits, name, long, timeout_s)
            traits = _calibrated(traits, counted, told)  # noqa: PLW2901
        return Server(client.origin, name, longest, traits)
    raise TargetError(f"{client.origin.text}: answers no completions: {said}")


class _RefusedError(RuntimeError):
    """The server does not take a request so."""


async def _model(client: Client, wanted: str | None, timeout_s: float) -> tuple[str, int | None]:
    try:
        answer = await client.get("/v1/models", timeout_s=timeout_s)
    except HttpError as error:
        raise TargetError(f"{client.origin.text}: no answer: {error}") from error
    if answer.status in _DENIED:
        raise TargetError(
            f"{client.origin.text}: refuses access (HTTP {answer.status}): give its bearer token (--token)"
        )
    cards = _cards(answer.body) if answer.status == 200 else []
    if not cards:
        if wanted is None:
            raise TargetError(
                f"{client.origin.text}: /v1/models names no model (HTTP {answer.status}): say which (--model)"
            )
        return wanted, None
    if wanted is None:
        chosen = cards[0]
    else:
        found = [card for card in cards if card["id"] == wanted]
        if not found and len(cards) < 50:
            known = ", ".join(card["id"] for card in cards)
            raise TargetError(f"{client.origin.text}: has no model {wanted!r}; it has {known}")
        chosen = found[0] if found else {"id": wanted}
    longest = chosen.get("max_model_len")
    return chosen["id"], longest if isinstance(longest, int) and longest > 0 else None


def _cards(body: bytes) -> list[dict[str, Any]]:
    try:
        value = json.loads(body)
    except ValueError:
        return []
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, list):
        return []
    return [card for card in data if isinstance(card, dict) and isinstance(card.get("id"), str)]


def _candidates(endpoint: Endpoint | None, *, as_tokens: bool | None) -> Iterator[Traits]:
    """From the most telling way to ask to the plainest."""
    ways = [(Endpoint.COMPLETIONS, True), (Endpoint.COMPLETIONS, False), (Endpoint.CHAT, False)]
    for (where, tokens), (eos, usage) in itertools.product(
        ways, [(True, True), (False, True), (True, False), (False, False)]
    ):
        if endpoint in {None, where} and as_tokens in {None, tokens}:
            yield Traits(where, tokens, eos, usage)


async def _probe(client: Client, traits: Traits, model: str, prompt: str, timeout_s: float) -> dict[str, Any]:
    """One short request; the usage that the server tells. Raises _RefusedError, TargetError."""
    body = traits.body(model, prompt, PROBE_TOKENS)
    for attempt in range(BUSY_TRIES):
        stream = Stream(array("d"))
        try:
            answer = await client.post(traits.path, body, stream.receive, timeout_s=timeout_s)
        except HttpError as error:
            if error.kind in {"malformed", "error in stream"}:
                raise _RefusedError(str(error)) from error
            raise TargetError(f"{client.origin.text}{traits.path}: {error}") from error
        if answer.status == 200:
            if not stream.finished:
                raise _RefusedError("the stream has no end that the API knows")
            return stream.usage
        said = refusal(answer.body)
        if answer.status in _DENIED:
            raise TargetError(
                f"{client.origin.text}{traits.path}: refuses access (HTTP {answer.status}: {said}): "
                "give its bearer token (--token)"
            )
        if answer.status not in _BUSY:
            raise _RefusedError(f"HTTP {answer.status}: {said}")
        if attempt + 1 < BUSY_TRIES:
            await asyncio.sleep(BUSY_WAIT_S)
    raise TargetError(
        f"{client.origin.text}{traits.path}: too busy for a single request (HTTP {answer.status})"
    )


async def _told_tokens(client: Client, traits: Traits, model: str, prompt: str, timeout_s: float) -> object:
    """How many tokens the server counts in a prompt; None where it does not say."""
    try:
        usage = await _probe(client, traits, model, prompt, timeout_s)
    except _RefusedError:
        return None
    return usage.get("prompt_tokens")


def _calibrated(traits: Traits, short: object, long: object) -> Traits:
    """With the tokens of a word, where the server has counted those of both probes."""
    if not isinstance(short, int) or not isinstance(long, int) or long <= short:
        return traits
    few, many = PROBE_WORDS
    return replace(traits, tokens_per_word=(long - short) / (many - few))


def refusal(body: bytes) -> str:
    """What an answer that is no 200 says, in one line."""
    try:
        return error_text(json.loads(body))
    except ValueError:
        return error_text(body[:300].decode(errors="replace")) or "no reason given"
