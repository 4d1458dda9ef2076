"""Metrics: text that a Prometheus parser takes, counts that are right."""

import math
import re

from loop.contracts.engine import UnavailableError
from loop.gateway.metrics import Counter, Histogram
from tests.loop.gateway.backend import TinyBackend
from tests.loop.gateway.harness import Served, served

LINE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\[\\n"])*",?)*)\})? (\S+)')


def parsed(text: str) -> dict[str, float]:
    """Series of a page; fails at anything that is not the text format."""
    found: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# "):
            word, name, rest = line[2:].split(" ", 2)
            if word == "TYPE":
                assert name not in kinds
                assert rest in {"counter", "gauge", "histogram"}
                kinds[name] = rest
            continue
        match = LINE.fullmatch(line)
        assert match, line
        base = re.sub(r"_(bucket|sum|count)$", "", match[1])
        assert match[1] in kinds or kinds.get(base) == "histogram"
        key = f"{match[1]}{{{match[2]}}}" if match[2] else match[1]
        assert key not in found
        found[key] = float(match[3])
    assert text.endswith("\n")
    return found


@served()
async def test_counts(s: Served) -> None:
    for _ in range(2):
        await s.complete(max_tokens=3)
    await s.chat(max_tokens=4, stream=True)
    await s.complete(max_tokens=0)
    await s.http.get("/nope/" + "x" * 50)
    s.backend.failure = UnavailableError("none")
    await s.complete()
    page = await s.http.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = parsed(page.text)
    requests = 'http_requests_total{method="POST",handler="/v1/completions",status="%d"}'
    assert [found[requests % status] for status in (200, 400, 503)] == [2, 1, 1]
    assert found['http_requests_total{method="GET",handler="other",status="404"}'] == 1
    labels = 'gen_ai_operation_name="%s",gen_ai_request_model="tiny"'
    text, chat = labels % "text_completion", labels % "chat"
    tokens = 'gen_ai_server_token_usage_total{%s,gen_ai_token_type="%s"}'
    assert [found[tokens % (text, kind)] for kind in ("input", "output")] == [6, 6]
    assert found[tokens % (chat, "output")] == 4
    assert found[f"gen_ai_server_time_to_first_token_seconds_count{{{text}}}"] == 2
    assert found[f"gen_ai_server_request_duration_seconds_count{{{chat}}}"] == 1
    assert found[f'gen_ai_server_time_per_output_token_seconds_bucket{{{chat},le="+Inf"}}'] == 1
    assert found["http_server_active_requests"] == 0
    assert found["http_server_open_connections"] == 1
    assert found[r'tiny_open_requests{model="a\"b\\c"}'] == 0
    assert found['tiny_open_requests{model="other"}'] == 2.5


@served(lambda: TinyBackend(token_s=0.01))
async def test_what_was_cut_is_counted(s: Served) -> None:
    raw = await s.raw()
    await raw.post({"model": "tiny", "prompt": "hi", "max_tokens": 1000, "stream": True})
    await raw.head()
    await raw.chunk()
    raw.abort()
    await s.backend.wait_open(0)
    found = parsed((await s.http.get("/metrics")).text)
    assert found['http_requests_aborted_total{method="POST",handler="/v1/completions"}'] == 1
    output = 'gen_ai_operation_name="text_completion",gen_ai_request_model="tiny",gen_ai_token_type="output"'
    assert 1 <= found[f"gen_ai_server_token_usage_total{{{output}}}"] < 1000


def test_histogram() -> None:
    histogram = Histogram("h_seconds", "Help.", (1.0, 2.5))
    for value in (0.5, 1.0, 1.1, 9.0):
        histogram.observe((), value)
    assert list(histogram.lines()) == [
        'h_seconds_bucket{le="1"} 2',
        'h_seconds_bucket{le="2.5"} 3',
        'h_seconds_bucket{le="+Inf"} 4',
        "h_seconds_sum 11.6",
        "h_seconds_count 4",
    ]


def test_odd_numbers_and_labels() -> None:
    counter = Counter("c_total", "Help.")
    for label, value in (("a\nb", math.nan), ("c", math.inf), ("d", 1e300)):
        counter.add((("x", label),), value)
    assert list(counter.lines()) == ['c_total{x="a\\nb"} NaN', 'c_total{x="c"} +Inf', 'c_total{x="d"} 1e+300']
