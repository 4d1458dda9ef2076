"""What the gateway costs over the engine itself, how much it carries, and how many streams it holds.

The engine is `simulated` (its tokens are a function of prompt and seed, so every answer is compared), in one process
with the gateway; the client (benchmarks.gateway_client) is another process with keep-alive connections. The same
backend answers in process what it is also asked over HTTP.

*Added latency*: the same request is answered in process and over HTTP, one after the other, in changing order;
`added` is the difference of the two times, of TTFT and of the whole answer, over all pairs. `alone`: one request at a
time. `loaded`: open loop of 50 requests/s, rounds in process and over HTTP in turn; since requests then meet other
batches, `added` is the difference of the two distributions' quantiles. *Throughput*: closed loop of short answers,
whole and streamed; the client's share of the machine is a column of its own. *Streams*: opened together and held;
each must be complete and equal to what the engine says in process. Other load on the machine raises all times and
lowers the rates in proportion: run it idle.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from benchmarks.common import BenchmarkInputError, Options, Row, Target, parse_options, publish, run_main
from execution.engines.registry import build_engine
from loop.contracts.engine import (
    Engine,
    EngineLimits,
    EngineOutput,
    EngineRequest,
    EngineSpec,
    Metric,
    ModelCard,
    SamplingParams,
    ServeRequest,
    Tokenizer,
)
from loop.gateway import Gateway, GatewayConfig, loop_factory, settle_heap
from loop.logs import configure_logging

MODEL = "llama-3.1-8b"
ADDED_P50_MS, ADDED_P99_MS, REQUESTS_PER_S, STREAMS = 2.0, 10.0, 1000.0, 2000
LOADED_PER_S = 50.0
"""Requests a second of the loaded case."""
LINE_BYTES = 1 << 30


class EngineBackend:
    """One engine as a ServingBackend: nothing between the gateway and the engine is timed with it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def models(self) -> tuple[ModelCard, ...]:
        """The engine's model."""
        return (ModelCard(MODEL, self._engine.info.max_model_len, 0, ready=True),)

    def tokenizer(self, model: str) -> Tokenizer:
        """The engine's, whatever the model."""
        del model
        return self._engine.tokenizer

    def serve(self, request: ServeRequest) -> AsyncIterator[EngineOutput]:
        """As the engine does."""
        return self._engine.generate(EngineRequest(request.id, request.prompt_token_ids, request.sampling))

    def metrics(self) -> Iterable[Metric]:
        """None."""
        return ()


@dataclass(frozen=True, slots=True)
class Case:
    """A request."""

    prompt: str
    max_tokens: int
    seed: int

    def body(self, *, stream: bool) -> str:
        """As JSON."""
        return json.dumps(
            {
                "model": MODEL,
                "prompt": self.prompt,
                "max_tokens": self.max_tokens,
                "seed": self.seed,
                "stream": stream,
                "ignore_eos": True,
            }
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """One answer."""

    ttft_s: float
    total_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Run:
    """What a command to the client gave."""

    timings: list[Timing]
    events: int
    wall_s: float
    client_cpu_s: float
    server_cpu_s: float


class World:
    """An engine, a gateway over it, and a client process."""

    def __init__(self, backend: EngineBackend, gateway: Gateway, client: asyncio.subprocess.Process) -> None:
        self._backend = backend
        self.gateway = gateway
        self._client = client
        self._count = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, time_scale: float = 1.0) -> AsyncIterator[Self]:
        """Start all three; `time_scale` below 1 makes the engine faster than the hardware it pretends."""
        limits = EngineLimits(max_num_seqs=2 * STREAMS, max_num_batched_tokens=8192, max_waiting=2 * STREAMS)
        options = {"time_scale": time_scale, "answer_tokens": 0.0}
        engine = build_engine(EngineSpec("simulated", MODEL, limits=limits, options=options))
        await engine.start()
        backend = EngineBackend(engine)
        pipe = asyncio.subprocess.PIPE
        try:
            async with Gateway(backend, GatewayConfig(port=0)) as gateway:
                client = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "benchmarks.gateway_client",
                    stdin=pipe,
                    stdout=pipe,
                    limit=LINE_BYTES,
                )
                settle_heap()  # as `autopoiesis loop serve` does
                try:
                    yield cls(backend, gateway, client)
                finally:
                    if client.stdin is not None:
                        client.stdin.close()
                    await client.wait()
        finally:
            await engine.stop()

    async def direct(self, case: Case) -> Timing:
        """Ask the backend in process."""
        began_s = time.perf_counter()
        self._count += 1
        ids = tuple(self._backend.tokenizer(MODEL).encode(case.prompt))
        sampling = SamplingParams(max_tokens=case.max_tokens, seed=case.seed, ignore_eos=True)
        first_s, text = 0.0, []
        async for output in self._backend.serve(ServeRequest(f"direct-{self._count}", MODEL, ids, sampling)):
            first_s = first_s or time.perf_counter()
            text.append(output.text)
        return Timing(first_s - began_s, time.perf_counter() - began_s, "".join(text))

    async def over_http(
        self, cases: Sequence[Case], workers: int, *, stream: bool, starts_s: Sequence[float] | None = None
    ) -> Run:
        """Ask through the client process. Raises BenchmarkInputError for an answer that is an error."""
        if self._client.stdin is None or self._client.stdout is None:
            raise BenchmarkInputError("gateway: the client process has no pipes")
        host, _, port = self.gateway.url.removeprefix("http://").rpartition(":")
        command = {
            "host": host,
            "port": int(port),
            "path": "/v1/completions",
            "bodies": [case.body(stream=stream) for case in cases],
            "workers": workers,
            "starts_s": starts_s,
        }
        cpu_s = time.process_time()
        self._client.stdin.write(json.dumps(command).encode() + b"\n")
        await self._client.stdin.drain()
        line = await self._client.stdout.readline()
        cpu_s = time.process_time() - cpu_s
        if not line:
            raise BenchmarkInputError("gateway: the client process ended; its error is above")
        found = json.loads(line)
        wrong = [answer for answer in found["answers"] if answer[2] != 200]
        if wrong:
            raise BenchmarkInputError(f"gateway: {len(wrong)} answers failed, the first with {wrong[0][2:]}")
        timings = [Timing(ttft_s, total_s, text) for ttft_s, total_s, _, _, text in found["answers"]]
        events = sum(answer[3] for answer in found["answers"])
        return Run(timings, events, found["wall_s"], found["cpu_s"], cpu_s)


def cases_of(count: int, max_tokens: int, seed: int, words_most: int = 40) -> list[Case]:
    """Requests, no two alike."""
    rng = random.Random(seed)
    words = ("river", "stone", "engine", "token", "gate", "spiral", "nerve", "body")
    return [
        Case(
            f"{i}: {' '.join(rng.choices(words, k=rng.randint(4, words_most)))}",
            max_tokens,
            rng.getrandbits(31),
        )
        for i in range(count)
    ]


async def measure_alone(world: World, options: Options) -> tuple[list[Row], list[Target]]:
    """Pairs of one request at a time."""
    count = 60 if options.quick else 600
    pairs: list[tuple[Timing, Timing]] = []
    for number, case in enumerate(cases_of(count + 10, 8, options.seed)):
        direct = await world.direct(case) if number % 2 else None
        http = (await world.over_http([case], 1, stream=True)).timings[0]
        direct = direct or await world.direct(case)
        check_same([direct], [http])
        pairs.append((direct, http))
    rows: list[Row] = []
    targets: list[Target] = []
    for name in ("ttft", "total"):
        engine = [1e3 * getattr(direct, f"{name}_s") for direct, _ in pairs[10:]]
        http_ms = [1e3 * getattr(http, f"{name}_s") for _, http in pairs[10:]]
        added = [b - a for a, b in zip(engine, http_ms, strict=True)]
        more, met = _latency(f"alone/{name}", engine, http_ms, [quantile(added, q) for q in (0.5, 0.99)])
        rows += more
        targets += met
    return rows, targets


async def measure_loaded(world: World, options: Options) -> tuple[list[Row], list[Target]]:
    """Rounds of Poisson arrivals, in process and over HTTP in turn; who comes second finds the prompts cached, so
    that each is second as often."""
    rounds, round_s = (4, 2.0) if options.quick else (8, 6.0)
    engine: list[list[Timing]] = []
    http: list[list[Timing]] = []
    for number in range(rounds):
        cases = cases_of(round(LOADED_PER_S * round_s), 16, options.seed + 1000 + number)
        rng = random.Random(options.seed + number)
        starts_s = sorted(rng.uniform(0.0, round_s) for _ in cases)
        for over_http in (True, False) if number % 2 else (False, True):
            if over_http:
                http.append(
                    (await world.over_http(cases, len(cases), stream=True, starts_s=starts_s)).timings
                )
            else:
                engine.append(await asyncio.gather(*map(_later, [world] * len(cases), starts_s, cases)))
        check_same(engine[-1], http[-1])
    rows: list[Row] = []
    targets: list[Target] = []
    for name in ("ttft", "total"):
        direct = [1e3 * getattr(each, f"{name}_s") for timings in engine for each in timings]
        through = [1e3 * getattr(each, f"{name}_s") for timings in http for each in timings]
        added = [quantile(through, q) - quantile(direct, q) for q in (0.5, 0.99)]
        more, met = _latency(f"loaded/{name}", direct, through, added)
        rows += more
        targets += met
    return rows, targets


async def measure_throughput(world: World, options: Options) -> tuple[list[Row], list[Target]]:
    """Closed loops of short answers, whole and streamed."""
    count, rounds = (2000, 1) if options.quick else (6000, 3)
    rows: list[Row] = []
    targets: list[Target] = []
    for case, stream, max_tokens in (("whole, 8 tokens", False, 8), ("streamed, 32 tokens", True, 32)):
        runs = []
        for number in range(rounds):
            cases = cases_of(count if not stream else count // 4, max_tokens, options.seed + number)
            runs.append((len(cases), await world.over_http(cases, 256, stream=stream)))
        per_s = statistics.median(number / run.wall_s for number, run in runs)
        rows += _rows(
            f"throughput/{case}",
            (
                ("requests", "1/s", per_s),
                ("tokens", "1/s", per_s * max_tokens),
                ("events", "1/s", statistics.median(run.events / run.wall_s for _, run in runs)),
                (
                    "server CPU a request",
                    "us",
                    1e6 * statistics.median(run.server_cpu_s / n for n, run in runs),
                ),
                (
                    "client CPU a request",
                    "us",
                    1e6 * statistics.median(run.client_cpu_s / n for n, run in runs),
                ),
                ("server", "cores", statistics.median(run.server_cpu_s / run.wall_s for _, run in runs)),
                ("client", "cores", statistics.median(run.client_cpu_s / run.wall_s for _, run in runs)),
            ),
        )
        if not stream:
            targets.append(Target("requests_per_s", per_s, REQUESTS_PER_S, "higher", "1/s"))
    return rows, targets


async def measure_streams(world: World, options: Options) -> tuple[list[Row], list[Target]]:
    """Streams opened together and held to their end; also in a quick run all of them."""
    cases = cases_of(STREAMS, 24 if options.quick else 96, options.seed + 7, words_most=8)
    most = [0]
    watch = asyncio.create_task(_watch(world.gateway, most))
    run = await world.over_http(cases, STREAMS, stream=True)
    watch.cancel()
    held = most[0]
    engine = await asyncio.gather(*map(world.direct, cases))
    right = sum(a.text == b.text for a, b in zip(engine, run.timings, strict=True))
    tokens = sum(case.max_tokens for case in cases)
    rows = _rows(
        f"streams/{STREAMS} of {cases[0].max_tokens} tokens",
        (
            ("held at once", "streams", held),
            ("complete and right", "streams", right),
            ("tokens", "1/s", tokens / run.wall_s),
            ("events", "1/s", run.events / run.wall_s),
            ("tokens an event", "1", tokens / run.events),
            ("server", "cores", run.server_cpu_s / run.wall_s),
            ("client", "cores", run.client_cpu_s / run.wall_s),
        ),
    )
    targets = [
        Target("streams_held_at_once", held, STREAMS, "higher", "streams"),
        Target("streams_complete_and_right", right, STREAMS, "higher", "streams"),
    ]
    return rows, targets


def check_same(engine: Sequence[Timing], http: Sequence[Timing]) -> None:
    """Raises BenchmarkInputError when an answer over HTTP is not what the engine says."""
    for direct, through in zip(engine, http, strict=True):
        if direct.text != through.text or not direct.text:
            raise BenchmarkInputError(f"gateway: over HTTP {through.text!r}, in process {direct.text!r}")


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values is."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parse_options("gateway", __doc__, argv)
    configure_logging()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        rows, targets = runner.run(_measure(options))
    return publish(options, rows, targets)


async def _measure(options: Options) -> tuple[list[Row], list[Target]]:
    rows: list[Row] = []
    targets: list[Target] = []
    for measure, time_scale in (
        (measure_alone, 1.0),
        (measure_loaded, 1.0),
        (measure_throughput, 0.05),  # at 0.25 the simulated hardware was the limit: a third of the core idled
        (measure_streams, 4.0),
    ):
        began_s = time.perf_counter()
        async with World.open(time_scale) as world:
            more, met = await measure(world, options)
        rows += more
        targets += met
        if not options.json:
            print(f"  {measure.__name__}: {time.perf_counter() - began_s:.1f} s", file=sys.stderr, flush=True)
    return rows, targets


async def _later(world: World, start_s: float, case: Case) -> Timing:
    await asyncio.sleep(start_s)
    return await world.direct(case)


async def _watch(gateway: Gateway, most: list[int]) -> None:
    """Keep the most requests in flight at once, as the gateway counts them."""
    while True:
        most[0] = max(most[0], gateway.in_flight)
        await asyncio.sleep(0.005)


def _rows(case: str, figures: Sequence[tuple[str, str, float]]) -> list[Row]:
    return [{"case": f"{case}/{name}", "unit": unit, "value": value} for name, unit, value in figures]


def _latency(
    case: str, engine: Sequence[float], http: Sequence[float], added_ms: Sequence[float]
) -> tuple[list[Row], list[Target]]:
    """Rows and targets of p50 and p99; `added_ms` has one figure for each."""
    rows: list[Row] = []
    targets: list[Target] = []
    for (name, share, limit_ms), added in zip(
        (("p50", 0.5, ADDED_P50_MS), ("p99", 0.99, ADDED_P99_MS)), added_ms, strict=True
    ):
        row = {"case": f"latency/{case}/{name}", "unit": "ms", "value": added}
        rows.append(
            {**row, "engine": quantile(engine, share), "http": quantile(http, share), "count": len(http)}
        )
        targets.append(Target(f"added_{name}_ms/{case}", added, limit_ms, "lower", "ms"))
    return rows, targets


if __name__ == "__main__":
    sys.exit(run_main(main))
