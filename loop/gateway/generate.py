"""Reading a job's choices from the backend: collected into one answer, or as a stream of events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from loop.contracts.engine import (
    EngineError,
    EngineFinish,
    EngineOutput,
    ServeRequest,
    ServingBackend,
    UnavailableError,
)
from loop.gateway.formats import DONE, Choice, Format, Usage
from loop.gateway.translate import Job

Write = Callable[[bytes, bool], Awaitable[None]]
"""(bytes to write, whether they are the last); waits while the reader is slow."""


class Generation:
    """One job on its way; the counts are right at any time, also when it ends early."""

    def __init__(self, job: Job, backend: ServingBackend, form: Format) -> None:
        self._job = job
        self._backend = backend
        self._form = form
        self.choices = [Choice(index, echo) for index, echo in enumerate(job.echoes)]
        self.first_token_s: float | None = None
        """`time.monotonic()` of the first token of any choice."""
        self.last_token_s = 0.0

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        usage = Usage(self._job.prompt_tokens)
        for choice in self.choices:
            usage.completion_tokens += choice.tokens
            usage.cached_tokens += choice.cached_tokens
        usage.cached_tokens = min(usage.cached_tokens, usage.prompt_tokens)
        return usage

    async def collected(self) -> bytes:
        """The whole answer. Raises what the backend raises."""
        pairs = list(zip(self._job.choices, self.choices, strict=True))
        if len(pairs) == 1:
            await self._collect(*pairs[0])
        else:
            tasks = [asyncio.create_task(self._collect(request, choice)) for request, choice in pairs]
            try:
                await asyncio.gather(*tasks)
            finally:
                await _ended(tasks)
        return self._form.answer(self.choices, self.usage)

    async def stream(self, write: Write) -> None:
        """Write events as outputs come; all that waits goes into one write.

        Nothing is written before the first output, so what fails until then can still be an error with a status.
        Raises what the backend raises.
        """
        if len(self.choices) > 1:
            await self._stream_merged(write)
        else:
            await self._read(self._job.choices[0], self.choices[0], write)

    async def _collect(self, request: ServeRequest, choice: Choice) -> None:
        async with _closing(self._backend.serve(request)) as outputs:
            async for output in outputs:
                self._count(choice, output)
                if output.text:
                    choice.texts.append(output.text)
                choice.logprobs.extend(output.logprobs)
                if output.finish is not None:
                    return
        raise _endless(request)

    async def _read(self, request: ServeRequest, choice: Choice, write: Write) -> None:
        """Write the events of one choice, and what ends the stream where it is the only one."""
        event = self._form.event
        alone = len(self.choices) == 1
        async with _closing(self._backend.serve(request)) as outputs:
            async for output in outputs:
                self._count(choice, output)
                written = event(choice, output)
                if output.finish is not None:
                    await write(written + self._ending() if alone else written, alone)
                    return
                if written:
                    await write(written, False)
        raise _endless(request)

    async def _stream_merged(self, write: Write) -> None:
        """Several choices as they come; what is read ahead of a slow reader is bounded by their number."""
        waiting: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(len(self.choices))

        async def put(written: bytes, _last: bool) -> None:  # noqa: FBT001  # a Write
            await waiting.put(written)

        async def read(request: ServeRequest, choice: Choice) -> None:
            try:
                await self._read(request, choice, put)
            except Exception as failure:  # noqa: BLE001  # raised again where the events are written
                await waiting.put(failure)
            else:
                await waiting.put(None)

        pairs = zip(self._job.choices, self.choices, strict=True)
        tasks = [asyncio.create_task(read(request, choice)) for request, choice in pairs]
        open_choices = len(tasks)
        try:
            while open_choices:
                items = [await waiting.get()]
                while not waiting.empty():
                    items.append(waiting.get_nowait())
                written = b""
                for item in items:
                    if isinstance(item, Exception):
                        raise item
                    open_choices -= item is None
                    written += item or b""
                if not open_choices:
                    await write(written + self._ending(), True)
                elif written:
                    await write(written, False)
        finally:
            await _ended(tasks)

    def _count(self, choice: Choice, output: EngineOutput) -> None:
        """Raises UnavailableError for an answer that somebody else has ended."""
        finish = output.finish
        if finish is EngineFinish.CANCELLED:
            raise UnavailableError("the request was cancelled while it was served")
        count = len(output.token_ids)
        choice.tokens += count
        choice.finish = finish
        choice.cached_tokens = max(choice.cached_tokens, output.cached_tokens)
        if count:
            self.last_token_s = now_s = time.monotonic()
            if self.first_token_s is None:
                self.first_token_s = now_s

    def _ending(self) -> bytes:
        if self._job.include_usage:
            return self._form.usage_event(self.usage) + DONE
        return DONE


@asynccontextmanager
async def _closing(outputs: AsyncIterator[EngineOutput]) -> AsyncIterator[AsyncIterator[EngineOutput]]:
    """Close the backend's iterator at the end, come what may: that cancels what it still does."""
    try:
        yield outputs
    finally:
        close = getattr(outputs, "aclose", None)  # a generator has it, a bare iterator need not
        if close is not None:
            await close()


def _endless(request: ServeRequest) -> EngineError:
    return EngineError(f"request {request.id}: the engine's answer has no end")


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel what still runs, and wait for its end: the backend has let go of all of it."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
