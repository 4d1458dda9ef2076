"""An HTTP/1.1 response as its bytes come in, and the server-sent events in it (RFC 9112; WHATWG HTML 9.2)."""

from __future__ import annotations

from collections.abc import Mapping

HEAD_LIMIT_BYTES = 65_536


class MalformedError(ValueError):
    """Bytes that are no HTTP/1.1 response."""


class ResponseParser:
    """Feed it bytes; it hands out the body as far as it has come. One response, then `reset`."""

    __slots__ = ("_buffer", "_chunked", "_left", "_trailer", "done", "headers", "keep_alive", "status")

    def __init__(self) -> None:
        self._buffer = b""
        self.reset()

    def reset(self) -> None:
        """Expect the next response on the same connection."""
        self.status = 0
        """0: the head is not complete."""
        self.headers: Mapping[str, str] = {}
        """Names in lower case."""
        self.keep_alive = True
        self.done = False
        self._chunked = False
        self._trailer = False
        self._left: int | None = 0
        """Bytes of the body, or of the chunk, that are to come; None: until the connection closes."""

    def feed(self, data: bytes) -> bytes:
        """What of the body came with these bytes. Raises MalformedError."""
        self._buffer = self._buffer + data if self._buffer else data
        while not self.status:
            if not self._read_head():
                return b""
        if self._chunked:
            return self._chunks()
        body, self._buffer = self._take(self._buffer)
        return body

    def end(self) -> None:
        """The connection is closed. Raises MalformedError in the middle of a response."""
        if self.status and self._left is None and not self._chunked:
            self.done = True
        if not self.done:
            raise MalformedError("the connection was closed before the answer was complete")

    def _read_head(self) -> bool:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            if len(head) > HEAD_LIMIT_BYTES:
                raise MalformedError(f"no end of the head in {HEAD_LIMIT_BYTES} bytes")
            return False
        first, *lines = head.split(b"\r\n")
        parts = first.split(None, 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            raise MalformedError(f"not an HTTP/1.1 status line: {first[:60]!r}")
        self._buffer = rest
        status = int(parts[1])
        if 100 <= status < 200:  # informational: the real one follows
            return True
        pairs = (line.partition(b":") for line in lines)
        headers = {k.decode("latin-1").lower(): v.strip().decode("latin-1") for k, _, v in pairs}
        self.status, self.headers = status, headers
        wishes = headers.get("connection", "").lower()
        self.keep_alive = "close" not in wishes and (parts[0] != b"HTTP/1.0" or "keep-alive" in wishes)
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        if status in {204, 304}:
            self.done = True
        elif not self._chunked:
            self._left = self._length(headers.get("content-length"))
            if self._left is None:
                self.keep_alive = False
            self.done = self._left == 0
        return True

    @staticmethod
    def _length(text: str | None) -> int | None:
        if text is None:
            return None
        if not text.isdigit():
            raise MalformedError(f"content-length is no number: {text[:40]!r}")
        return int(text)

    def _take(self, data: bytes) -> tuple[bytes, bytes]:
        if self._left is None:
            return data, b""
        body = data[: self._left]
        self._left -= len(body)
        if not self._left and not self._chunked:
            self.done = True
        return body, data[len(body) :]

    def _chunks(self) -> bytes:
        parts = []
        buffer, at = self._buffer, 0
        while not self.done:
            if self._left:
                piece = buffer[at : at + self._left]
                if not piece:
                    break
                parts.append(piece)
                at += len(piece)
                self._left -= len(piece)
                continue
            end = buffer.find(b"\r\n", at)
            if end < 0:
                break
            line = buffer[at:end]
            at = end + 2
            if self._trailer:  # trailer fields, up to an empty line
                self.done = not line
            elif line:
                try:
                    self._left = int(line.partition(b";")[0], 16)
                except ValueError:
                    raise MalformedError(f"not the size of a chunk: {line[:40]!r}") from None
                self._trailer = self._left == 0
            # An empty line ends the chunk before.
        self._buffer = buffer[at:]
        return b"".join(parts)


class EventParser:
    """Server-sent events: the `data` of each, as they are complete."""

    __slots__ = ("_data", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, body: bytes) -> list[bytes]:
        """Events that these bytes complete."""
        lines = (self._rest + body).split(b"\n")
        self._rest = lines.pop()
        events = []
        for raw in lines:
            line = raw.rstrip(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif not line and self._data:
                events.append(b"\n".join(self._data) if len(self._data) > 1 else self._data[0])
                self._data.clear()
        return events
