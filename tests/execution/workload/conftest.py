"""Small trace files in the true formats, and small workloads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from loop.contracts import Request, Workload

AZURE_CSV = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:51.2200000,879,55"""  # no newline at the end, like the real file

MOONCAKE_JSONL = """\
{"timestamp": 27000, "input_length": 1100, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 27000, "input_length": 700, "output_length": 1, "hash_ids": [0, 3]}
{"timestamp": 30000, "input_length": 1600, "output_length": 30, "hash_ids": [0, 1, 4, 5]}
"""

VIDUR_CSV = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.314579,396,109\n"

VLLM_STREAM = """\
{"input_toks": 2361, "output_toks": 532, "arrival_time_ns": 46926808}
{"input_toks": 1128, "output_toks": 772, "arrival_time_ns": 347938951}
"""

VLLM_LOG = """\
{"request_id": "bench-0", "input_toks": 2358, "output_toks": 531, "arrival_time": 1777142838.338653, "queued_ts": 1.0}
{"request_id": "bench-1", "input_toks": 1034, "output_toks": 769, "arrival_time": 1777142838.6237123, "queued_ts": 1.3}
"""


@pytest.fixture
def azure_csv(tmp_path: Path) -> Path:
    path = tmp_path / "AzureLLMInferenceTrace_conv_2023.csv"
    path.write_text(AZURE_CSV)
    return path


@pytest.fixture
def mooncake_jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "conversation_trace.jsonl"
    path.write_text(MOONCAKE_JSONL)
    return path


@pytest.fixture
def servegen_dir(tmp_path: Path) -> Path:
    """Two clients over two hours: a steady Gamma one, a bursty Weibull one that sleeps at first."""
    folder = tmp_path / "m-test"
    folder.mkdir()
    rows = range(0, 7200, 600)
    steady = [f"{t},4.0,1.0,Gamma,1.0,0.25" for t in rows]
    bursty = [f"{t},0,0,,0,0" if t < 1200 else f"{t},2.0,3.0,Weibull,0.4,0.1" for t in rows]
    for number, lines in ((3, steady), (12, bursty)):
        (folder / f"chunk-{number}-trace.csv").write_text("\n".join(lines) + "\n")
    steady_pdf = {"0": {"input_tokens": "{100: 0.5, 200: 0.5}", "output_tokens": "{0: 0.1, 7: 0.9}"}}
    empty = {"input_tokens": "{}", "output_tokens": "{}"}
    bursty_pdf = {"0": empty, "21600": {"input_tokens": "{5000: 1.0}", "output_tokens": "{1: 0.5, 2: 0.5}"}}
    (folder / "chunk-3-dataset.json").write_text(json.dumps(steady_pdf))
    (folder / "chunk-12-dataset.json").write_text(json.dumps(bursty_pdf))
    (folder / "aggregate_rate_600s.csv").write_text("t_s,req_per_s\n0,4\n")
    return folder


@pytest.fixture
def write_trace(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "trace"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def steady() -> Workload:
    """One request a second for 1000 s, every one with two blocks of prefix."""
    return Workload(
        "steady",
        tuple(Request(i, float(i), "m", 1000 + i, 10, (i % 50, 50 + i)) for i in range(1000)),
        "test",
    )


@pytest.fixture
def data_dir() -> Path:
    """The real traces, where they are; the test is skipped elsewhere."""
    candidates = [os.environ.get("AUTOPOIESIS_DATA"), str(Path(__file__).parents[4] / "shared" / "data")]
    for candidate in candidates:
        if candidate and (Path(candidate) / "azure").is_dir():
            return Path(candidate)
    pytest.skip("no trace files: set AUTOPOIESIS_DATA")
