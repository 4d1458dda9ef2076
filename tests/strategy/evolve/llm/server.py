"""An OpenAI-compatible endpoint on loopback that does what a script says: real HTTP, every way it can go wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request as it came in."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def prompt(self) -> str:
        return "\n\n".join(m["content"] for m in self.body["messages"])

    @property
    def last(self) -> str:
        return str(self.body["messages"][-1]["content"])


@dataclass(frozen=True)
class Says:
    """An answer: JSON or bytes, with a status and headers. `hold`: not before this event is set."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    drip_s: float = 0.0
    """Pause between two bytes."""
    cut: bool = False
    """Close the connection in the middle of the body."""
    hang_up: bool = False
    """Close it without a word."""


Script = Callable[[Asked], Says]


def said(
    text: object,
    finish: str = "stop",
    usage: tuple[int, int] | None = (1000, 200),
    **message: Any,
) -> Says:
    """A chat completion."""
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": text, **message},
            }
        ],
    }
    if usage is not None:
        body["usage"] = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "total_tokens": sum(usage),
        }
    return Says(body)


def error(status: int, message: str = "no", headers: dict[str, str] | None = None, code: str = "") -> Says:
    """An error as OpenAI's API words it."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": code or None}}
    return Says(body, status, headers or {})


class Endpoint:
    """The server: `asked` is what came in; `busiest` how many requests were open at once."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.busiest = 0
        self.stopping = threading.Event()
        self._open = 0
        self._lock = threading.Lock()
        endpoint = self

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """A client that hung up is none of our business."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                endpoint.serve(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
                """Silent."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("content-length", 0))
        body = json.loads(handler.rfile.read(length))
        with self._lock:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            asked = Asked(len(self.asked), handler.path, headers, body)
            self.asked.append(asked)
            self._open += 1
            self.busiest = max(self.busiest, self._open)
        try:
            self._answer(handler, self.script(asked))
        except OSError:
            handler.close_connection = True
        finally:
            with self._lock:
                self._open -= 1

    def _answer(self, handler: BaseHTTPRequestHandler, says: Says) -> None:
        while says.hold is not None and not says.hold.wait(0.02):
            if self.stopping.is_set():
                return
        if says.hang_up:
            handler.close_connection = True
            return
        body = says.body if isinstance(says.body, bytes) else json.dumps(says.body).encode()
        handler.send_response(says.status)
        for name, value in {"content-type": "application/json", **says.headers}.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        if says.cut:
            handler.wfile.write(body[: len(body) // 2])
            handler.close_connection = True
            return
        if not says.drip_s:
            handler.wfile.write(body)
            return
        for byte in body:
            handler.wfile.write(bytes([byte]))
            if self.stopping.wait(says.drip_s):
                return


@contextmanager
def endpoint(script: Script) -> Iterator[Endpoint]:
    """A running endpoint."""
    server = Endpoint(script)
    try:
        yield server
    finally:
        server.close()


def in_turn(*answers: Says) -> Script:
    """One answer after the other; the last one for ever."""
    return lambda asked: answers[min(asked.number, len(answers) - 1)]
