"""A small OpenAI-compatible endpoint that answers by script, over real HTTP."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from strategy.baselines import load_baseline

Answer = tuple[int, dict[str, str], str]
"""(HTTP status, headers, what the model says)."""


@dataclass
class Endpoint:
    """What was asked, and where."""

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@contextmanager
def endpoint(script: Callable[[int, dict[str, Any]], Answer]) -> Iterator[Endpoint]:
    """Serve `script(number of the question from 0, its body)` on a free port."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(known.asked)
                known.asked.append(body)
                known.keys.append(self.headers.get("Authorization", ""))
            status, headers, text = script(number, body)
            answer = completion(body, text) if status == 200 else {"error": {"message": text}}
            payload = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json"}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    known = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield known
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    """A whole chat completion."""
    prompt = sum(len(m["content"]) for m in body["messages"]) // 4
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": len(text) // 4,
            "total_tokens": prompt + len(text) // 4,
        },
    }


def better_policy(number: int, body: dict[str, Any]) -> Answer:
    """Now and then an error, else a policy that works, each another one."""
    if number == 0:
        return 429, {"Retry-After": "0"}, "slow down"
    if number == 1:
        return 200, {}, "I would rather talk about the weather."
    if number == 2:
        return 503, {}, "overloaded"
    source = load_baseline("least_loaded").source
    source = re.sub(r"TAIL = [\d.]+", f"TAIL = {1.0 + 0.37 * number:.2f}", source)
    source = re.sub(r"MAX_BATCHED_TOKENS = \d+", f"MAX_BATCHED_TOKENS = {1024 + 512 * number}", source)
    source = source.replace('"""Best static layout;', f'"""Larger chunks, try {number};', 1)
    return 200, {}, f"A larger chunk wastes fewer iterations.\n\n```python\n{source}```\n"
