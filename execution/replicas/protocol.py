"""What a RemoteEngine and its worker say to each other: frames of msgpack over a Unix socket.

A frame is its length (four bytes, big-endian) and one message. What one turn of the event loop has to say goes out
in one write; all outputs of one engine step are one message.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

from loop.contracts.engine import (
    EngineBusyError,
    EngineCrashedError,
    EngineDrainingError,
    EngineError,
    EngineFinish,
    EngineInfo,
    EngineRequest,
    EngineRequestError,
    EngineSpec,
    TokenLogprob,
)

M = TypeVar("M")
_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(EngineRequest).decode
_LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 256 << 20
"""More is no message of ours."""
HIGH_WATER_BYTES = 1 << 20
"""Unsent bytes from which a sender keeps what it has to say to itself."""


class Message(msgspec.Struct, array_like=True, tag=True, frozen=True, gc=False):
    """One message."""


# -- to the worker -----------------------------------------------------------------------------------------------


class Start(Message, frozen=True):
    """Build and start this engine: the first message."""

    spec: EngineSpec


class Submit(Message, frozen=True):
    """Generate; outputs come back under this number."""

    stream: int
    request: msgspec.Raw
    """An EngineRequest, which the worker reads apart: a malformed one ends its stream, not the connection."""

    @classmethod
    def of(cls, stream: int, request: EngineRequest) -> Submit:
        """Raises OverflowError or TypeError for values that msgpack cannot hold."""
        return cls(stream, msgspec.Raw(_encode(request)))

    def read(self) -> EngineRequest:
        """Raises EngineRequestError."""
        try:
            return _decode_request(self.request)
        except msgspec.MsgspecError as error:
            raise EngineRequestError(f"the request is malformed: {error}") from error


class Cancel(Message, frozen=True):
    """End a request; its last output says CANCELLED."""

    stream: int


class Drop(Message, frozen=True):
    """Nobody reads it any more: end it and say nothing."""

    stream: int


class Ask(Message, frozen=True):
    """Call a method of the engine."""

    call: int
    method: str
    arguments: tuple[Any, ...] = ()


class Quit(Message, frozen=True):
    """Stop the engine and exit."""


# -- from the worker ---------------------------------------------------------------------------------------------


class Started(Message, frozen=True):
    """It serves."""

    info: EngineInfo


class StartFailed(Message, frozen=True):
    """It never will."""

    kind: str
    message: str


class Chunk(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is new in one stream."""

    stream: int
    token_ids: tuple[int, ...]
    text: str
    finish: EngineFinish | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    stop_reason: str | None = None
    cached_tokens: int = 0
    scheduled_s: float = 0.0


class Outputs(Message, frozen=True):
    """Of one step, as a rule."""

    chunks: list[Chunk]


class Broken(Message, frozen=True):
    """A stream has ended with an error."""

    stream: int
    kind: str
    message: str


class Answered(Message, frozen=True):
    """What a method returned."""

    call: int
    value: Any


class Refused(Message, frozen=True):
    """What a method raised."""

    call: int
    kind: str
    message: str


ToWorker = Start | Submit | Cancel | Drop | Ask | Quit
FromWorker = Started | StartFailed | Outputs | Broken | Answered | Refused

# -- errors ------------------------------------------------------------------------------------------------------

_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        EngineBusyError,
        EngineDrainingError,
        EngineCrashedError,
        EngineRequestError,
        EngineError,
        ValueError,
    )
}


def error_of(kind: str, message: str) -> Exception:
    """The exception that the worker caught; EngineError where the port knows no such kind."""
    known = _ERRORS.get(kind)
    return known(message) if known is not None else EngineError(f"{kind}: {message}")


def kind_of(error: BaseException) -> str:
    """Name of the port's exception that this one is."""
    for kind in type(error).__mro__:
        if kind.__name__ in _ERRORS:
            return kind.__name__
    return type(error).__name__


# -- the wire ----------------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol, Generic[M]):
    """One end of the socket: whole messages in, messages out in one write a turn of the loop.

    `received` gets each message, `lost` is called when the other end is gone (with what it did wrong, if it broke the protocol),
    `writable` whenever there is room again after `congested` was true.
    """

    def __init__(
        self,
        kinds: Any,
        received: Callable[[M], None],
        lost: Callable[[str], None],
        writable: Callable[[], None] | None = None,
    ) -> None:
        self._decode: Callable[[bytes], M] = msgspec.msgpack.Decoder(kinds).decode
        self._received = received
        self._lost = lost
        self._writable = writable
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._inbox = bytearray()
        self._outbox: list[bytes] = []
        self.congested = False

    def send(self, message: Message) -> None:
        """With what else this turn of the loop has to say. Raises what msgspec raises for a value that it cannot
        encode (OverflowError, TypeError), or OverflowError for one that is too long."""
        body = _encode(message)
        if len(body) > MAX_FRAME_BYTES:
            raise OverflowError(f"a message of {len(body)} bytes; at most {MAX_FRAME_BYTES} can be sent")
        if not self._outbox:
            self._loop.call_soon(self.flush)
        self._outbox.append(_LENGTH.pack(len(body)))
        self._outbox.append(body)

    def flush(self) -> None:
        """Write now what was sent."""
        outbox, self._outbox = self._outbox, []
        if outbox and self._transport is not None:
            self._transport.write(b"".join(outbox))

    def close(self) -> None:
        """Send what is left, and hang up."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    # -- asyncio.Protocol --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is in the loop."""
        stream = cast(asyncio.Transport, transport)  # of a stream socket; uvloop's is no subclass
        stream.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._transport = stream

    def pause_writing(self) -> None:
        """The other end reads too slowly."""
        self.congested = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self.congested = False
        if self._writable is not None:
            self._writable()

    def data_received(self, data: bytes) -> None:
        """Take messages out as they become whole."""
        inbox = self._inbox
        inbox += data
        start, size = 0, len(inbox)
        while size - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(inbox, start)
            if length > MAX_FRAME_BYTES:
                self._break(f"a frame of {length} bytes")
                return
            end = start + _LENGTH.size + length
            if end > size:
                break
            try:
                # A copy: what a message holds undecoded must not point into the inbox.
                message = self._decode(bytes(inbox[start + _LENGTH.size : end]))
            except msgspec.MsgspecError as error:
                self._break(f"a message that cannot be read: {error}")
                return
            start = end
            self._received(message)
        del inbox[:start]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - a reset is what death looks like
        """The other end is gone."""
        self._transport = None
        self._lost("")

    def _break(self, why: str) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._lost(f"the other end broke the protocol: {why}")
