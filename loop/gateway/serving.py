"""The two endpoints that generate: from the request's body to the last byte of its answer."""

from __future__ import annotations

import asyncio
import math
import time

from pydantic import ValidationError

from loop.contracts.engine import DeadlineError, ServingBackend
from loop.gateway.admission import Admission
from loop.gateway.config import GatewayConfig
from loop.gateway.errors import ApiError, from_validation
from loop.gateway.exchange import JSON, Exchange
from loop.gateway.formats import ChatFormat, CompletionFormat
from loop.gateway.generate import Generation
from loop.gateway.interrupt import Interrupt
from loop.gateway.metrics import GatewayMetrics
from loop.gateway.schema import ChatRequest, CompletionRequest
from loop.gateway.translate import Job, Terms, job_of

TIMEOUT_HEADER = b"x-request-timeout-s"


class GenerateEndpoint:
    """POST /v1/completions or /v1/chat/completions."""

    def __init__(
        self,
        body: type[CompletionRequest | ChatRequest],
        backend: ServingBackend,
        config: GatewayConfig,
        admission: Admission,
        metrics: GatewayMetrics,
    ) -> None:
        self._body = body
        self._chat = body is ChatRequest
        self._operation = "chat" if self._chat else "text_completion"
        self._backend = backend
        self._config = config
        self._admission = admission
        self._metrics = metrics

    async def handle(self, exchange: Exchange, tier: int) -> None:
        """Answer. Raises ApiError, ServeError, ClientGoneError."""
        _check_content_type(exchange)
        timeout_s = _timeout_s(exchange, self._config)
        with self._admission.entered(exchange.id):
            self._admission.on_cut(exchange.id, lambda _reason: exchange.abort())
            asked = self._parsed(await self._read(exchange))
            left_s = exchange.arrived_s + timeout_s - time.monotonic()
            late = DeadlineError(f"The request was not done within its {timeout_s:g} s.")
            async with Interrupt(exchange, left_s, late) as interrupt:
                self._admission.on_cut(exchange.id, interrupt.fire)
                terms = Terms(exchange.id, tier, exchange.arrived_s + timeout_s)
                job = await job_of(asked, self._backend, self._config, terms)
                await self._generate(exchange, job)

    async def _generate(self, exchange: Exchange, job: Job) -> None:
        exchange.facts.update(model=job.card.name, prompt_tokens=job.prompt_tokens, choices=len(job.choices))
        generation = Generation(job, self._backend, self._form(exchange, job))
        try:
            if job.stream:
                await generation.stream(exchange.stream)
            else:
                await exchange.answer(200, await generation.collected())
        finally:
            self._count(exchange, job, generation)

    def _form(self, exchange: Exchange, job: Job) -> ChatFormat | CompletionFormat:
        form, prefix = (ChatFormat, "chatcmpl-") if self._chat else (CompletionFormat, "cmpl-")
        logprobs = job.choices[0].sampling.logprobs is not None
        return form(
            prefix + exchange.id,
            job.model,
            int(time.time()),
            job.tokenizer,
            logprobs=logprobs,
            usage=job.include_usage,
        )

    async def _read(self, exchange: Exchange) -> bytes:
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                return await exchange.body(self._config.max_body_bytes)
        except TimeoutError:
            raise ApiError(408, "The body took too long.", code="request_timeout", close=True) from None

    def _parsed(self, body: bytes) -> CompletionRequest | ChatRequest:
        try:
            return self._body.model_validate_json(body)
        except ValidationError as error:
            raise from_validation(error) from None

    def _count(self, exchange: Exchange, job: Job, generation: Generation) -> None:
        """Metrics and log of what was made, also where it was cut short."""
        usage = generation.usage
        labels = (("gen_ai_operation_name", self._operation), ("gen_ai_request_model", job.card.name))
        metrics = self._metrics
        exchange.facts["completion_tokens"] = usage.completion_tokens
        metrics.tokens.add((*labels, ("gen_ai_token_type", "input")), usage.prompt_tokens)
        metrics.tokens.add((*labels, ("gen_ai_token_type", "output")), usage.completion_tokens)
        first_s = generation.first_token_s
        if first_s is None:
            return
        metrics.ttft.observe(labels, first_s - exchange.arrived_s)
        exchange.facts["ttft_ms"] = round(1e3 * (first_s - exchange.arrived_s), 3)
        if exchange.complete:
            metrics.generation.observe(labels, generation.last_token_s - exchange.arrived_s)
            after_first = usage.completion_tokens // len(job.choices) - 1
            if after_first > 0:
                metrics.per_token.observe(labels, (generation.last_token_s - first_s) / after_first)


def _check_content_type(exchange: Exchange) -> None:
    """Only JSON: what a foreign web page can send without asking first is refused."""
    given = (exchange.header(b"content-type") or b"").partition(b";")[0].strip().lower()
    if given != JSON:
        raise ApiError(
            415, "The body must be JSON: send content-type: application/json.", param="content-type"
        )


def _timeout_s(exchange: Exchange, config: GatewayConfig) -> float:
    given = exchange.header(TIMEOUT_HEADER)
    if given is None:
        return config.deadline_s
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        name = TIMEOUT_HEADER.decode()
        raise ApiError(400, f"{name} must be a number of seconds above 0.", code="invalid_value", param=name)
    return min(seconds, config.max_deadline_s)
