"""The replay itself: an open loop. Requests leave when the workload says so, whatever became of those before."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loop.contracts import Request
from loop.loadtest.http1 import Client, HttpError
from loop.loadtest.outcome import CANCELLED, CLIENT_LIMIT, OK, Outcome
from loop.loadtest.prompts import Prompts
from loop.loadtest.server import Server, refusal
from loop.loadtest.stream import Stream

TICK_S = 0.02
"""How often the client looks whether it is late itself."""
_NEVER = -1.0


@dataclass(frozen=True, slots=True)
class Pacing:
    """How requests are sent."""

    timeout_s: float = 120.0
    """From sending to the end of the answer."""
    max_in_flight: int = 4096
    """Requests beyond are not sent, and counted: waiting would not be the workload any more."""
    longest_input_tokens: int | None = None
    longest_output_tokens: int | None = None


class Drive:
    """One replay against one server. `run` it once; look at it meanwhile."""

    def __init__(
        self, client: Client, server: Server, requests: Sequence[Request], prompts: Prompts, pacing: Pacing
    ) -> None:
        """`requests` ascend in arrival; the first second of the workload is the first of the test."""
        self._client = client
        self._server = server
        self._requests = requests
        self._prompts = prompts
        self._pacing = pacing
        self._tasks: set[asyncio.Task[None]] = set()
        self._began_s = 0.0
        self._began_cpu_s = 0.0
        self.outcomes: list[Outcome] = []
        self.gaps_s = array("d")
        """Between pieces of one answer, of all answers."""
        self.loop_lags_s = array("d")
        """How late the client's own clock rang, every TICK_S."""
        self.clipped = 0
        """Requests made shorter to fit the model."""
        self.most_in_flight = 0
        self.elapsed_s = 0.0
        self.cpu_s = 0.0
        self.ended_by_hand = False

    @property
    def in_flight(self) -> int:
        """Requests sent and not answered."""
        return len(self._tasks)

    @property
    def total(self) -> int:
        """Requests of the workload."""
        return len(self._requests)

    async def run(self, *, each_s: float = 1.0, tell: Callable[[Drive], None] | None = None) -> None:
        """Send everything and wait for all answers. `tell` is called every `each_s`.

        When cancelled it ends what is in flight, notes that, and returns; `outcomes` stays usable.
        """
        self._began_s, self._began_cpu_s = time.monotonic(), time.process_time()
        watcher = asyncio.create_task(self._watch())
        teller = asyncio.create_task(self._tell(each_s, tell)) if tell is not None else None
        try:
            await self._send_all()
            while self._tasks:
                await asyncio.wait(list(self._tasks))
        except asyncio.CancelledError:
            self.ended_by_hand = True
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            self._measure()
            watcher.cancel()
            if teller is not None:
                teller.cancel()
            await asyncio.gather(watcher, *([teller] if teller else []), return_exceptions=True)

    async def _send_all(self) -> None:
        for request in self._requests:
            due_s = request.arrival_s
            wait_s = self._began_s + due_s - time.monotonic()
            if wait_s > 0.0:
                await asyncio.sleep(wait_s)
            elif len(self.outcomes) % 64 == 0:
                await asyncio.sleep(0.0)  # late: let answers in all the same
            if len(self._tasks) >= self._pacing.max_in_flight:
                self._note_unsent(request)
                continue
            task = asyncio.create_task(self._one(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self.most_in_flight = max(self.most_in_flight, len(self._tasks))

    async def _one(self, request: Request) -> None:
        input_tokens, output_tokens = self._lengths(request)
        prompt = self._prompts.of(request, input_tokens)
        body = self._server.traits.body(self._server.model, prompt, output_tokens)
        stream = Stream(self.gaps_s)
        error, detail = OK, ""
        sent_s = time.monotonic()
        try:
            answer = await self._client.post(
                self._server.traits.path, body, stream.receive, timeout_s=self._pacing.timeout_s
            )
            if answer.status != 200:
                error, detail = f"HTTP {answer.status}", refusal(answer.body)
            elif not stream.finished:
                error, detail = "cut short", "the stream ended without a finish reason"
            elif not stream.pieces:
                error, detail = "empty answer", "no piece of an answer came"
        except HttpError as failure:
            error, detail = failure.kind, str(failure)
        except asyncio.CancelledError:
            error = CANCELLED
        wanted = input_tokens, output_tokens
        self._note(request, stream, sent_s, wanted=wanted, error=error, detail=detail)

    def _lengths(self, request: Request) -> tuple[int, int]:
        """Tokens of prompt and answer, made to fit."""
        pacing, longest = self._pacing, self._server.max_model_len
        output_tokens = min(request.output_tokens, pacing.longest_output_tokens or request.output_tokens)
        input_tokens = min(request.input_tokens, pacing.longest_input_tokens or request.input_tokens)
        if longest is not None:
            output_tokens = min(output_tokens, max(1, longest // 2, longest - input_tokens))
            input_tokens = min(input_tokens, max(1, longest - output_tokens - 1))
        if (input_tokens, output_tokens) != (request.input_tokens, request.output_tokens):
            self.clipped += 1
        return input_tokens, output_tokens

    def _note(
        self,
        request: Request,
        stream: Stream,
        sent_s: float,
        *,
        wanted: tuple[int, int],
        error: str,
        detail: str,
    ) -> None:
        began_s = self._began_s
        usage = stream.usage
        seen = stream.pieces > 0
        self.outcomes.append(
            Outcome(
                id=request.id,
                due_s=request.arrival_s,
                sent_s=sent_s - began_s,
                first_s=stream.first_s - began_s if seen else _NEVER,
                last_s=stream.last_s - began_s if seen else _NEVER,
                done_s=time.monotonic() - began_s,
                wanted_input_tokens=wanted[0],
                wanted_output_tokens=wanted[1],
                input_tokens=_count(usage.get("prompt_tokens"), wanted[0]),
                output_tokens=_count(usage.get("completion_tokens"), stream.pieces),
                pieces=stream.pieces,
                error=error,
                detail=detail,
            )
        )

    def _note_unsent(self, request: Request) -> None:
        now_s = time.monotonic() - self._began_s
        self.outcomes.append(
            Outcome(
                request.id, request.arrival_s, _NEVER, _NEVER, _NEVER, now_s,
                request.input_tokens, request.output_tokens, 0, 0, 0, CLIENT_LIMIT,
            )
        )  # fmt: skip

    async def _watch(self) -> None:
        """Notes how late this event loop is: what waits in it would be counted as the server's time."""
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(TICK_S)
            self.loop_lags_s.append(max(0.0, time.monotonic() - before_s - TICK_S))

    async def _tell(self, each_s: float, tell: Callable[[Drive], None]) -> None:
        while True:
            await asyncio.sleep(each_s)
            self._measure()
            tell(self)

    def _measure(self) -> None:
        self.elapsed_s = time.monotonic() - self._began_s
        self.cpu_s = time.process_time() - self._began_cpu_s


def _count(told: object, otherwise: int) -> int:
    return told if isinstance(told, int) and not isinstance(told, bool) and told >= 0 else otherwise
