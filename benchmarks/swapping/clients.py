"""Clients that check what they get: at the dispatcher itself, or through HTTP from another process."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.swapping.cases import Case
from execution.replicas.dispatcher import Dispatcher
from loop.contracts import ServeError, ServeRequest

DEADLINE_S = 150.0
_LINE_BYTES = 1 << 30


@dataclass(slots=True)
class Outcome:
    """What one request came to."""

    error: str = ""
    finals: int = 0
    corrupted: bool = False
    repeated: bool = False
    """It is the right answer and more behind it."""

    @property
    def lost(self) -> bool:
        """No whole answer."""
        return bool(self.error) or self.finals == 0


async def ask_directly(
    dispatcher: Dispatcher, model: str, cases: Sequence[Case], requests: int, concurrency: int
) -> list[Outcome]:
    """`requests` requests in all, the cases in turn, so many at a time."""
    numbers = iter(range(requests))
    outcomes = [Outcome() for _ in range(requests)]

    async def client() -> None:
        for number in numbers:
            case = cases[number % len(cases)]
            outcomes[number] = await _ask(dispatcher, model, f"r{number}", case)

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return outcomes


async def _ask(dispatcher: Dispatcher, model: str, name: str, case: Case) -> Outcome:
    request = ServeRequest(
        name, model, case.prompt_token_ids, case.sampling, deadline_s=time.monotonic() + DEADLINE_S
    )
    outcome, token_ids, text, finish = Outcome(), list[int](), "", None
    try:
        async for output in dispatcher.serve(request):
            token_ids += output.token_ids
            text += output.text
            if output.finish is not None:
                outcome.finals += 1
                finish = output.finish
    except ServeError as error:
        outcome.error = f"{type(error).__name__}: {error}"
    right = (tuple(token_ids), text, finish) == (case.token_ids, case.text, case.finish)
    outcome.corrupted = not outcome.lost and not right
    outcome.repeated = len(token_ids) > len(case.token_ids)
    return outcome


async def ask_by_http(
    url: str, model: str, cases: Sequence[Case], requests: int, concurrency: int
) -> list[Outcome]:
    """The same as streamed completions, from a process of its own (benchmarks.gateway_client)."""
    host, _, port = url.removeprefix("http://").partition(":")
    used = [cases[number % len(cases)] for number in range(requests)]
    command = {
        "host": host,
        "port": int(port),
        "path": "/v1/completions",
        "bodies": [_body(model, case) for case in used],
        "workers": concurrency,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.gateway_client",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
    )
    try:
        answer, _ = await process.communicate(json.dumps(command).encode() + b"\n")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return [
        _judged(status, text, case)
        for (_, _, status, _, text), case in zip(json.loads(answer)["answers"], used, strict=True)
    ]


def _judged(status: int, text: str, case: Case) -> Outcome:
    if status != 200:
        return Outcome(error=f"status {status}: {text:.200}")
    repeated = text != case.text and text.startswith(case.text) and bool(case.text)
    return Outcome(finals=1, corrupted=text != case.text, repeated=repeated)


def _body(model: str, case: Case) -> str:
    body = {
        "model": model,
        "prompt": case.prompt,
        "max_tokens": case.sampling.max_tokens,
        "temperature": case.sampling.temperature,
        "seed": case.sampling.seed,
        "stream": True,
    }
    if case.sampling.stop:
        body["stop"] = list(case.sampling.stop)
    return json.dumps(body)
