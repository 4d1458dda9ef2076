"""The OpenAPI document, made from the models that requests are checked with and answers are described by."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from loop.gateway import answers
from loop.gateway.errors import as_json
from loop.gateway.schema import ChatRequest, CompletionRequest

_REF = "#/components/schemas/"
_Object = dict[str, Any]


@lru_cache(maxsize=2)
def published(*, secured: bool) -> bytes:
    """The document as it is sent."""
    return as_json(document(secured=secured))


def document(*, secured: bool) -> _Object:
    """OpenAPI 3.1 of the gateway; `secured`: a bearer token is needed."""
    models: list[type[BaseModel]] = [CompletionRequest, ChatRequest, *answers.MODELS]
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REF + "{model}"
    )
    components: _Object = {"schemas": definitions["$defs"]}
    if secured:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Autopoiesis gateway",
            "version": _version(),
            "description": "OpenAI-compatible serving of language models.",
        },
        "paths": _paths(secured=secured),
        "components": components,
    }


def _paths(*, secured: bool) -> _Object:
    guarded: _Object = {"security": [{"bearer": []}]} if secured else {}
    refused = {"401": _error("No token, or a wrong one")} if secured else {}
    return {
        "/v1/completions": {"post": {**_generation("createCompletion", CompletionRequest, answers.Completion, answers.CompletionEvent), **guarded}},
        "/v1/chat/completions": {
            "post": {**_generation("createChatCompletion", ChatRequest, answers.ChatCompletion, answers.ChatEvent), **guarded}
        },
        "/v1/models": {"get": {**_get("listModels", "All models", {"200": _json("Models", answers.ModelList), **refused}), **guarded}},
        "/v1/models/{model}": {
            "get": {
                **_get(
                    "retrieveModel",
                    "One model",
                    {"200": _json("The model", answers.Model), "404": _error("No such model"), **refused},
                ),
                "parameters": [
                    {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                ],
                **guarded,
            }
        },
        **{path: {"get": _get(name, text, responses)} for path, name, text, responses in _health()},
        "/metrics": {
            "get": {
                **_get("metrics", "Prometheus metrics", {"200": _text("Metrics, text format 0.0.4", "text/plain"), **refused}),
                **guarded,
            }
        },
        "/openapi.json": {
            "get": _get("openapi", "This document", {"200": {"description": "OpenAPI", "content": {"application/json": {"schema": {"type": "object"}}}}})
        },
    }  # fmt: skip


def _health() -> list[tuple[str, str, str, _Object]]:
    up = {"200": _json("It runs", answers.Health)}
    ready = {"200": _json("Some model is ready", answers.Health), "503": _json("Not now", answers.Health)}
    return [
        ("/health", "health", "Does the server run?", up),
        ("/health/live", "live", "Does the server run?", up),
        ("/health/ready", "ready", "Can the server answer?", ready),
    ]


def _generation(name: str, body: type[BaseModel], answer: type[BaseModel], event: type[BaseModel]) -> _Object:
    statuses = {
        "400": "The request is wrong, or asks for what is not supported",
        "401": "No token, or a wrong one",
        "404": "No such model",
        "408": "The body took too long",
        "413": "The body is too large",
        "415": "The body is not said to be JSON",
        "429": "Too much at a time; Retry-After says when to try again",
        "500": "A defect",
        "503": "No replica now, or shutting down",
        "504": "Not done by the deadline",
    }
    done = _json("The answer", answer)
    done["content"]["text/event-stream"] = {"schema": _events(event)}
    return {
        "operationId": name,
        "parameters": [
            {
                "name": "x-request-timeout-s",
                "in": "header",
                "description": "Seconds that the request may take.",
                "schema": {"type": "number", "exclusiveMinimum": 0},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF + body.__name__}}},
        },
        "responses": {"200": done, **{status: _error(text) for status, text in statuses.items()}},
    }


def _events(event: type[BaseModel]) -> _Object:
    """One server-sent event: JSON in `data`; the last is [DONE], or an error before the connection is closed."""
    either = [{"$ref": _REF + model.__name__} for model in (event, answers.ErrorAnswer)]
    return {
        "type": "object",
        "description": "One event. The last one's data is [DONE]; after an error there is none.",
        "required": ["data"],
        "properties": {
            "data": {
                "anyOf": [
                    {"const": "[DONE]"},
                    {
                        "type": "string",
                        "contentMediaType": "application/json",
                        "contentSchema": {"anyOf": either},
                    },
                ]
            }
        },
    }


def _get(name: str, summary: str, responses: _Object) -> _Object:
    return {"operationId": name, "summary": summary, "responses": responses}


def _json(description: str, model: type[BaseModel]) -> _Object:
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": _REF + model.__name__}}},
    }


def _text(description: str, media: str) -> _Object:
    return {"description": description, "content": {media: {"schema": {"type": "string"}}}}


def _error(description: str) -> _Object:
    return _json(description, answers.ErrorAnswer)


def _version() -> str:
    try:
        return version("autopoiesis")
    except PackageNotFoundError:  # a checkout that was not installed
        return "0"
