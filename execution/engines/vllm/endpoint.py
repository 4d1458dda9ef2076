"""The control channel over HTTP, inside of vLLM's own server (entry point `vllm.endpoint_plugins`).

vLLM loads endpoint plug-ins only when VLLM_PLUGINS names them (`VLLM_PLUGINS=autopoiesis`). The routes stand below
/v1, which is what vLLM's `--api-key` guards: without a key they are as open as the rest of the server.

| route | does |
|---|---|
| GET /v1/autopoiesis | status |
| PUT, DELETE /v1/autopoiesis/policy | `{"name", "source"}`; none |
| PUT /v1/autopoiesis/limits | `{"max_num_seqs", "max_num_batched_tokens"}` |
| GET /v1/autopoiesis/adapters | names and paths |
| PUT, DELETE /v1/autopoiesis/adapters/NAME | `{"path"}`: load a LoRA adapter; unload it |
| POST /v1/autopoiesis/sleep, /wake | `{"level", "mode"}` |
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from execution.engines.vllm.plugin import ABSENT, INVALID, REFUSED, UTILITY, Answer, error
from execution.engines.vllm.private import lora_orders

BASE = "/v1/autopoiesis"
_STATUS = {REFUSED: 422, INVALID: 400, ABSENT: 409}
_MODES = ("abort", "wait", "keep")
_LIMITS = {"max_num_seqs", "max_num_batched_tokens"}


class ControlEndpoint:
    """Implements vLLM's EndpointPlugin."""

    name = "autopoiesis"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Add the routes."""
        for method, path, route in (
            ("GET", "", _status),
            ("PUT", "/policy", _put_policy),
            ("DELETE", "/policy", _delete_policy),
            ("PUT", "/limits", _put_limits),
            ("POST", "/sleep", _sleep),
            ("POST", "/wake", _wake),
            ("GET", "/adapters", _adapters),
            ("PUT", "/adapters/{name}", _put_adapter),
            ("DELETE", "/adapters/{name}", _delete_adapter),
        ):
            app.add_route(BASE + path, route, methods=[method])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Remember the engine."""
        del args
        state.autopoiesis_engine = engine_client


# -- the scheduler ---------------------------------------------------------------------------------------


async def _status(request: Request) -> Response:
    return await _told(request, {"do": "status"})


async def _put_policy(request: Request) -> Response:
    body = await _body(request)
    if not body or not body.get("source"):
        return _response(error(INVALID, "an object with the policy's `source` is expected"))
    return await _told(request, {"do": "policy", "name": body.get("name", ""), "source": body["source"]})


async def _delete_policy(request: Request) -> Response:
    return await _told(request, {"do": "policy", "source": ""})


async def _put_limits(request: Request) -> Response:
    body = await _body(request)
    if not body or set(body) - _LIMITS:
        return _response(error(INVALID, f"an object with {' or '.join(sorted(_LIMITS))} is expected"))
    return await _told(request, {**body, "do": "limits"})


async def _told(request: Request, message: dict[str, Any]) -> Response:
    core = request.app.state.autopoiesis_engine.engine_core
    return _response(await core.call_utility_async(UTILITY, message))


# -- the engine ------------------------------------------------------------------------------------------


async def _sleep(request: Request) -> Response:
    body = await _body(request) if await request.body() else {}
    level, mode = (body.get("level", 1), body.get("mode", "abort")) if body is not None else (None, None)
    if isinstance(level, bool) or level not in {0, 1, 2} or mode not in _MODES:
        return _response(error(INVALID, f"level 0, 1 or 2, and mode {', '.join(_MODES)}"))
    engine = request.app.state.autopoiesis_engine
    await engine.sleep(level, mode)
    return _response({"sleeping": await engine.is_sleeping()})


async def _wake(request: Request) -> Response:
    engine = request.app.state.autopoiesis_engine
    await engine.wake_up()
    return _response({"sleeping": await engine.is_sleeping()})


async def _adapters(request: Request) -> Response:
    known = request.app.state.openai_serving_models.lora_requests
    return _response({"adapters": {name: lora.lora_path for name, lora in known.items()}})


async def _put_adapter(request: Request) -> Response:
    body = await _body(request)
    path = body.get("path") if body else None
    if not isinstance(path, str) or not path:
        return _response(error(INVALID, "an object with the adapter's `path` is expected"))
    load, _ = lora_orders()
    order = load(lora_name=request.path_params["name"], lora_path=path)
    return _lora_response(await request.app.state.openai_serving_models.load_lora_adapter(order))


async def _delete_adapter(request: Request) -> Response:
    models, name = request.app.state.openai_serving_models, request.path_params["name"]
    known = models.lora_requests.get(name)
    _, unload = lora_orders()
    answer = await models.unload_lora_adapter(unload(lora_name=name))
    if known is not None and isinstance(answer, str):  # vLLM forgets its name alone
        await request.app.state.autopoiesis_engine.remove_lora(known.lora_int_id)
    return _lora_response(answer)


# -- answers ---------------------------------------------------------------------------------------------


async def _body(request: Request) -> dict[str, Any] | None:
    """The body as an object; None: it is none."""
    try:
        body = await request.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _response(answer: Answer) -> Response:
    return JSONResponse(answer, status_code=_STATUS.get(answer.get("error", ""), 200))


def _lora_response(answer: Any) -> Response:
    """A text, or an ErrorResponse of vLLM."""
    if isinstance(answer, str):
        return JSONResponse({"message": answer})
    body = {"error": INVALID, "message": answer.error.message}
    return JSONResponse(body, status_code=int(answer.error.code))
