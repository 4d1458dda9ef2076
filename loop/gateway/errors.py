"""Errors as OpenAI's clients expect them: status, `type`, `code`, `param`; and which failure becomes which."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from loop.contracts.engine import (
    DeadlineError,
    EngineBusyError,
    EngineError,
    EngineRequestError,
    InvalidRequestError,
    RejectedError,
    ServeError,
    UnavailableError,
    UnknownModelError,
)
from loop.gateway.schema import UNSUPPORTED

INVALID = "invalid_request_error"
SERVER = "server_error"
RATE_LIMIT = "rate_limit_error"


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        close: bool = False,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.close = close
        """Close the connection after the answer."""
        self.extra_headers = headers

    def body(self) -> bytes:
        """The error object, JSON."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, separators=(",", ":")).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers beside content type and length."""
        headers = list(self.extra_headers)
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
        if self.close:
            headers.append((b"connection", b"close"))
        return headers


class ClientGoneError(Exception):
    """The client has closed its connection; nobody reads an answer."""


def unknown_model(name: str) -> ApiError:
    """404, as OpenAI words it."""
    shown = name if len(name) <= 200 else name[:200] + "..."
    message = f"The model {shown!r} does not exist or you do not have access to it."
    return ApiError(404, message, code="model_not_found", param="model")


def shutting_down() -> ApiError:
    """503: the server goes away, the client should connect elsewhere or later."""
    return ApiError(
        503, "The server is shutting down.", kind=SERVER, code="shutting_down", retry_after_s=5.0, close=True
    )


_FAILURES: tuple[tuple[type[Exception], int, str, str], ...] = (
    (UnknownModelError, 404, INVALID, "model_not_found"),
    (InvalidRequestError, 400, INVALID, "invalid_value"),
    (EngineRequestError, 400, INVALID, "invalid_value"),
    (RejectedError, 429, RATE_LIMIT, "rate_limit_exceeded"),
    (EngineBusyError, 429, RATE_LIMIT, "rate_limit_exceeded"),
    (UnavailableError, 503, SERVER, "unavailable"),
    (DeadlineError, 504, SERVER, "deadline_exceeded"),
    (ServeError, 500, SERVER, "engine_error"),
    (EngineError, 500, SERVER, "engine_error"),
)
"""The first that fits counts."""


def from_failure(failure: Exception) -> ApiError:
    """What the failure of a backend means to a client. Unknown failures are 500 and tell nothing of the inside."""
    if isinstance(failure, ApiError):
        return failure
    for kind, status, error_type, code in _FAILURES:
        if isinstance(failure, kind):
            retry_after_s = failure.retry_after_s if isinstance(failure, RejectedError) else 1.0
            return ApiError(
                status,
                str(failure),
                kind=error_type,
                code=code,
                param="model" if status == 404 else None,
                retry_after_s=retry_after_s if status in {429, 503} else None,
            )
    return ApiError(500, "The server had an error while processing the request.", kind=SERVER)


_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}


def from_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request's body; never repeats what was sent."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = _param(first)
    kind = first["type"]
    if kind == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}.")
    name = next((part for part in reversed(first["loc"]) if part in UNSUPPORTED), None)
    if name is not None and kind != "missing":
        message = f"{param} is not supported by this server with this value: leave it out."
        return ApiError(400, message, code="unsupported_parameter", param=param)
    if kind == "extra_forbidden":
        message = f"Unrecognized request argument supplied: {param}"
    elif kind == "missing":
        message = f"Missing required parameter: {param}"
    else:
        message = f"Invalid value for {param or 'the body'}: {first['msg'].removeprefix('Value error, ')}"
    code = _CODES.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")
    return ApiError(400, message, code=code, param=param)


def _param(details: ErrorDetails) -> str | None:
    """`messages[0].content`; the names of union members are no part of it."""
    path = ""
    for part in details["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<"):
            path += f".{part[:100]}" if path else part[:100]
    return path or None


def as_json(value: Any) -> bytes:
    """Compact JSON, UTF-8."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can only escape
        return json.dumps(value, separators=(",", ":")).encode()
