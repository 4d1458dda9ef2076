"""vLLM over HTTP: an OpenAI-compatible server of our own, or one that runs already."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from execution.engines.models import load_config
from execution.engines.vllm import metrics
from execution.engines.vllm.backend import Shape
from execution.engines.vllm.child import ServerChild
from execution.engines.vllm.flight import REJECTED, Asked, Chunk, Flight
from execution.engines.vllm.http import Address, Answer, HttpError, ask, ask_json
from execution.engines.vllm.options import VllmOptions
from loop.contracts import (
    EngineBusyError,
    EngineCrashedError,
    EngineError,
    EngineRequestError,
    EngineSpec,
    TokenLogprob,
)

_BASE = "/v1/autopoiesis"
_DEAD = ("EngineDeadError", "EngineCore encountered an issue")
"""How vLLM's front says that its engine process is gone."""
_PATHS = {"policy": "/policy", "limits": "/limits"}


class ServerBackend:
    """Implements Backend. Each request is a stream of its own, read by a task of its own."""

    def __init__(self, spec: EngineSpec, options: VllmOptions, directory: str) -> None:
        self._spec = spec
        self._options = options
        self._directory = directory
        self._child = None if options.url else ServerChild(spec, options, directory)
        self._address = _address(options) if options.url else Address("", 0)
        self._name = spec.served_name or spec.model
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self._address

    @property
    def pid(self) -> int | None:
        """Of our own server's process."""
        return self._child.pid if self._child else None

    async def start(self) -> Shape:
        """Bring up the server, and see what it serves."""
        if self._child is not None:
            await self._child.start()
            self._address = self._child.address
        status, answer = await self._json("GET", "/v1/models")
        if status != 200:
            raise EngineError(f"{self._address.url}/v1/models answers {status}: {_message(answer)}")
        cards = {card["id"]: card for card in answer["data"]}
        card = cards.get(self._name)
        if card is None:
            raise EngineError(f"{self._address.url} serves {', '.join(cards)}, not {self._name}")
        return Shape(load_config(self._directory).vocab_size, int(card["max_model_len"]))

    def submit(self, asked: Asked, flight: Flight) -> None:
        """See Backend."""
        self._tasks[asked.id] = asyncio.get_running_loop().create_task(self._serve(asked, flight))

    def abort(self, request_id: str) -> None:
        """Closes the connection: vLLM aborts then."""
        task = self._tasks.pop(request_id, None)
        if task is not None:
            task.cancel()

    async def control(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """See Backend."""
        what = str(message.get("do"))
        if what == "status":
            status, answer = await self._json("GET", _BASE)
        elif what == "policy" and not message.get("source"):
            status, answer = await self._json("DELETE", f"{_BASE}/policy")
        else:
            body = {key: value for key, value in message.items() if key != "do"}
            status, answer = await self._json("PUT", _BASE + _PATHS[what], body)
        if not isinstance(answer, dict) or (status != 200 and "error" not in answer):
            raise EngineError(
                f"{self._address.url}{_BASE} answers {status}: start vLLM with VLLM_PLUGINS=autopoiesis and "
                "this package on its path"
            )
        return {**answer, "message": _message(answer)} if status != 200 else answer

    async def metrics(self) -> Mapping[str, float]:
        """From /metrics."""
        try:
            async with await ask(self._address, "GET", "/metrics") as answer:
                return metrics.parse((await answer.body()).decode("utf-8", "replace"))
        except HttpError as error:
            raise self._crashed(error) from error

    async def load_adapter(self, name: str, path: str) -> None:
        """See Backend."""
        await self._adapter("PUT", name, {"path": path})

    async def unload_adapter(self, name: str) -> None:
        """See Backend."""
        await self._adapter("DELETE", name)

    async def adapters(self) -> tuple[str, ...]:
        """See Backend."""
        _, answer = await self._json("GET", f"{_BASE}/adapters")
        return tuple(answer["adapters"])

    async def sleep(self, level: int) -> None:
        """See Backend."""
        await self._expect("POST", f"{_BASE}/sleep", {"level": level})

    async def wake(self) -> None:
        """See Backend."""
        await self._expect("POST", f"{_BASE}/wake")

    async def stop(self) -> None:
        """Ends our own server; one that was there before is left alone."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._child is not None:
            await self._child.stop()

    # -- details -----------------------------------------------------------------------------------------

    async def _serve(self, asked: Asked, flight: Flight) -> None:
        try:
            async with await ask(self._address, "POST", "/v1/completions", self._body(asked)) as answer:
                if answer.status == 200:
                    await _stream(asked, flight, answer)
                else:
                    flight.put(_refusal(asked, answer.status, await answer.body()))
        except HttpError as error:
            flight.put(self._crashed(error))
        except asyncio.CancelledError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            flight.put(EngineError(f"request {asked.id}: the server's answer cannot be read: {error!r}"))
        finally:
            if self._tasks.get(asked.id) is asyncio.current_task():
                del self._tasks[asked.id]

    def _body(self, asked: Asked) -> dict[str, Any]:
        return {
            "model": asked.adapter or self._name,
            "prompt": list(asked.prompt_token_ids),
            "max_tokens": asked.max_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": asked.top_k,
            "seed": asked.seed,
            "logprobs": asked.logprobs,
            "stop_token_ids": list(asked.stop_token_ids),
            "ignore_eos": True,  # else vLLM adds the model's own to the stop tokens
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "add_special_tokens": False,
            "vllm_xargs": asked.extra,
        }

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        try:
            return await ask_json(self._address, method, path, body)
        except HttpError as error:
            raise self._crashed(error) from error

    async def _adapter(self, method: str, name: str, body: dict[str, Any] | None = None) -> None:
        status, answer = await self._json(method, f"{_BASE}/adapters/{quote(name, safe='')}", body)
        if status != 200:
            raise EngineRequestError(f"adapter {name!r}: {_message(answer)}")

    async def _expect(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        status, answer = await self._json(method, path, body)
        if status != 200:
            raise EngineError(f"{self._address.url}{path} answers {status}: {_message(answer)}")

    def _crashed(self, error: HttpError) -> EngineCrashedError:
        return EngineCrashedError(f"the vLLM server is gone: {error}")


async def _stream(asked: Asked, flight: Flight, answer: Answer) -> None:
    """From server-sent events to chunks."""
    last: Chunk | None = None
    async for data in answer.events():
        if data == "[DONE]":
            break
        event = json.loads(data)
        if "error" in event:
            why = _message(event)
            kind = EngineCrashedError if any(word in why for word in _DEAD) else EngineError
            flight.put(kind(f"request {asked.id}: {why}"))
            return
        for choice in event.get("choices", ()):
            chunk = _chunk(choice, asked.logprobs)
            if chunk.finish is None:
                flight.put(chunk)
            else:
                last = chunk  # until the usage has told how much was in the prefix cache
        if last is not None:
            last = last._replace(cached_tokens=_cached_tokens(event) or last.cached_tokens)
    # a stream without a word is how vLLM shows a request that was refused before its first token
    flight.put(last or Chunk(finish="abort", stop_reason=REJECTED))


def _address(options: VllmOptions) -> Address:
    parts = urlsplit(options.url)
    if parts.scheme != "http" or not parts.hostname:
        raise EngineError(f"vllm: option url: http://host:port is expected, not {options.url!r}")
    return Address(parts.hostname, parts.port or 80, options.api_key)


def _refusal(asked: Asked, status: int, body: bytes) -> EngineError:
    try:
        why = _message(json.loads(body))
    except ValueError:
        why = body[:200].decode("utf-8", "replace")
    if any(word in why for word in _DEAD):
        return EngineCrashedError(f"request {asked.id}: {why}")
    if status in {429, 503}:
        return EngineBusyError(f"request {asked.id}: {why}")
    kind = EngineRequestError if 400 <= status < 500 else EngineError
    return kind(f"request {asked.id}: vLLM answers {status}: {why}")


def _message(answer: Any) -> str:
    """Errors of vLLM are `{"error": {"message": ...}}`, ours `{"error": kind, "message": ...}`."""
    if not isinstance(answer, dict):
        return str(answer)[:200]
    inner = answer.get("error")
    found = inner.get("message") if isinstance(inner, dict) else answer.get("message", inner)
    return str(found)[:2000]


def _cached_tokens(event: Mapping[str, Any]) -> int:
    usage = event.get("usage") or {}
    return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def _chunk(choice: Mapping[str, Any], asked: int | None) -> Chunk:
    token_ids = tuple(int(i) for i in choice.get("token_ids") or ())
    reason = choice.get("stop_reason")
    return Chunk(
        token_ids,
        _logprobs(token_ids, choice.get("logprobs"), asked or 0),
        choice.get("finish_reason"),
        reason if isinstance(reason, str) else None,
    )


def _logprobs(
    token_ids: tuple[int, ...], found: Mapping[str, Any] | None, asked: int
) -> tuple[TokenLogprob, ...]:
    if not found:
        return ()
    given = []
    tops = found.get("top_logprobs") or [None] * len(token_ids)
    for token_id, logprob, top in zip(token_ids, found["token_logprobs"], tops, strict=True):
        pairs = [(int(name.removeprefix("token_id:")), float(value)) for name, value in (top or {}).items()]
        pairs.sort(key=lambda pair: -pair[1])
        given.append(TokenLogprob(token_id, float(logprob), tuple(pairs[:asked])))
    return tuple(given)
