"""The one module that imports `openai`: a chat completion, or a typed reason why there is none.

The answer's body is read here, up to a limit and within one deadline for all of it, since endpoints send
bodies that drip, never end, or are no JSON.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from strategy.evolve.synthesise.llm.config import LlmConfig, LlmConfigError
from strategy.evolve.synthesise.llm.reply import ChatFault, Redact, Reply, one_line, read_reply
from strategy.evolve.synthesise.llm.retry import retry_after_s

MAX_BODY_BYTES = 4 << 20
_CONNECT_S = 10.0
"""For the connection alone: a host that drops packets must not take the patience that an answer is given."""
Message = dict[str, str]
"""`role` and `content`."""


class _Secret:
    """Takes the key out of texts, where it stands as a word of its own."""

    _PLACEHOLDER_CHARS = 8
    """Shorter keys (`EMPTY`, `ollama`) are no secrets, and words that code may hold."""

    def __init__(self, key: str) -> None:
        self._pattern = re.compile(rf"(?<![\w-]){re.escape(key)}(?![\w-])") if key else None
        self._is_secret = len(key) >= self._PLACEHOLDER_CHARS

    def redact(self, text: str) -> str:
        return self._pattern.sub("***", text) if self._pattern else text

    def redact_code(self, text: str) -> str:
        return self.redact(text) if self._is_secret else text


class ChatClient:
    """Chat completions of one endpoint. Made and used inside one asyncio loop."""

    def __init__(self, config: LlmConfig) -> None:
        openai = import_openai()
        self._timeout_s = config.timeout_s
        self._temperature = config.temperature
        self._secret = _Secret(config.api_key)
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            api_key=config.api_key
            or "none",  # never the one in the environment: this may be another endpoint
            base_url=config.base_url,
            timeout=openai.Timeout(config.timeout_s, connect=min(_CONNECT_S, config.timeout_s)),
            max_retries=0,
        )
        # Nor other settings of an account there: the configuration alone counts.
        self._client.organization = self._client.project = None
        self._limit_name: dict[str, str] = {}
        self._no_temperature: set[str] = set()

    async def complete(self, model: str, messages: Sequence[Message], max_output_tokens: int) -> Reply:
        """Ask once.

        Raises:
            ChatFault: no answer; its text never holds the key.
        """
        options: dict[str, Any] = {self._limit_name.get(model, "max_tokens"): max_output_tokens}
        if model not in self._no_temperature:
            options["temperature"] = self._temperature
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._body(model, messages, options)
        except TimeoutError:
            raise self._timed_out() from None
        except self._openai.APITimeoutError:
            raise self._timed_out() from None
        except self._openai.APIStatusError as error:
            raise self._refused(model, options, error) from None
        except self._openai.APIConnectionError as error:
            raise ChatFault("connection", _innermost(error, self.redact), down=True) from None
        except (self._openai.OpenAIError, ValueError) as error:
            raise ChatFault("server-error", _first_line(error, self.redact), down=True) from None
        except OSError as error:
            raise ChatFault("connection", _innermost(error, self.redact), down=True) from None
        reply = read_reply(body, self.redact)
        return replace(reply, text=self._secret.redact_code(reply.text), refusal=self.redact(reply.refusal))

    def redact(self, text: str) -> str:
        """The text without the key: endpoints quote it when they do not know it."""
        return self._secret.redact(text)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _body(self, model: str, messages: Sequence[Message], options: dict[str, Any]) -> bytes:
        request = self._client.chat.completions.with_streaming_response.create(
            model=model, messages=list(messages), **options
        )
        body = bytearray()
        try:
            async with request as response:
                async for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise ChatFault(
                            "server-error",
                            f"a body of more than {MAX_BODY_BYTES} bytes",
                            may_be_charged=True,
                            down=True,
                        )
        except (ChatFault, asyncio.CancelledError, self._openai.OpenAIError):
            raise
        except Exception as error:  # noqa: BLE001  the transport's errors (httpx or httpx2, by version)
            raise ChatFault(
                "connection", _innermost(error, self.redact), may_be_charged=True, down=True
            ) from None
        return bytes(body)

    def _timed_out(self) -> ChatFault:
        detail = f"no whole answer within {self._timeout_s:g} s"
        return ChatFault("timeout", detail, may_be_charged=True, down=True)

    def _refused(self, model: str, options: dict[str, Any], error: Any) -> ChatFault:
        """The fault that a status code stands for."""
        status = int(error.status_code)
        message = _message_of(error, self.redact)
        detail = f"HTTP {status}: {message}"
        wait_s = retry_after_s(error.response.headers)
        code = getattr(error, "code", None)
        if code in ("content_filter", "content_policy_violation"):
            return ChatFault("refusal", detail)
        if status == 429:
            return ChatFault("rate-limit", detail, permanent=code == "insufficient_quota", wait_s=wait_s)
        if status in (408, 409, 425):
            return ChatFault("timeout" if status == 408 else "server-error", detail, wait_s=wait_s, down=True)
        if status >= 500:
            return ChatFault("server-error", detail, wait_s=wait_s, down=True)
        if status == 400 and self._adapts(model, options, message):
            return ChatFault("client-error", detail, wait_s=0.0)
        return ChatFault("client-error", detail, permanent=status in (401, 402, 403, 404, 405))

    def _adapts(self, model: str, options: dict[str, Any], message: str) -> bool:
        """Whether requests differ from now on in what the endpoint complained of in this one."""
        text = message.lower()
        if "max_completion_tokens" in text and "max_tokens" in options:
            self._limit_name[model] = "max_completion_tokens"
            return True
        if "temperature" in text and "temperature" in options:
            self._no_temperature.add(model)
            return True
        return False


def import_openai() -> Any:
    """The `openai` package.

    Raises:
        LlmConfigError: it is not installed, or too old.
    """
    way_out = "install it with: pip install 'autopoiesis[llm]'"
    try:
        import openai  # noqa: PLC0415  optional, and slow to import
    except ImportError as error:
        raise LlmConfigError(f"the llm synthesiser needs the openai package; {way_out}") from error
    if int(openai.__version__.partition(".")[0]) < 2:
        raise LlmConfigError(f"openai {openai.__version__} is too old: 2 or later is needed; {way_out}")
    return openai


def _message_of(error: Any, redact: Redact) -> str:
    """What the endpoint says is wrong: OpenAI, vLLM and Ollama each put it elsewhere."""
    body = error.body
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        text = inner.get("message") if isinstance(inner, Mapping) else inner
        if isinstance(text, str):
            return one_line(text, redact)
    return _first_line(error, redact)


def _first_line(error: BaseException, redact: Redact) -> str:
    return one_line(str(error), redact) or type(error).__name__


def _innermost(error: BaseException, redact: Redact) -> str:
    """`Connection error.` says little: what the socket said is at the bottom of the chain."""
    seen = {id(error)}
    while (inner := error.__cause__ or error.__context__) is not None and id(inner) not in seen:
        seen.add(id(inner))
        error = inner
    return _first_line(error, redact)
