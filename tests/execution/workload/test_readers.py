from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from execution.workload import WorkloadError, open_workload
from execution.workload.opening import sniff
from execution.workload.readers import azure, mooncake, vidur, vllm_log
from tests.examples import up_to
from tests.execution.workload.conftest import (
    AZURE_CSV,
    MOONCAKE_JSONL,
    VIDUR_CSV,
    VLLM_LOG,
    VLLM_STREAM,
)
from tests.execution.workload.strategies import well_formed

Write = Callable[[str | bytes], Path]


def test_azure_rebases_times_and_reads_the_last_line_without_newline(azure_csv: Path) -> None:
    workload = azure.read(azure_csv, model="m")
    assert [r.arrival_s for r in workload.requests] == pytest.approx([0.0, 4.314579, 64.53941])
    assert [(r.input_tokens, r.output_tokens) for r in workload.requests] == [
        (374, 44),
        (396, 109),
        (879, 55),
    ]
    assert not workload.generated
    assert workload.source == str(azure_csv)


def test_azure_crosses_midnight_and_knows_columns_by_name(write_trace: Write) -> None:
    path = write_trace(
        "GeneratedTokens,TIMESTAMP,ContextTokens\r\n"
        "5,2023-12-31 23:59:59.5,10\r\n6,2024-01-01 00:00:00.25+00:00,20\r\n"
    )
    requests = azure.read(path, model="m").requests
    assert requests[1].arrival_s == pytest.approx(0.75)
    assert requests[1].input_tokens == 20


def test_mooncake_keeps_block_hashes(mooncake_jsonl: Path) -> None:
    workload = mooncake.read(mooncake_jsonl, model="m")
    assert workload.block_tokens == 512
    assert [r.arrival_s for r in workload.requests] == [0.0, 0.0, 3.0]
    assert workload.requests[2].block_hashes == (0, 1, 4, 5)


def test_vllm_streams_and_logs(write_trace: Write) -> None:
    stream = vllm_log.read(write_trace(VLLM_STREAM), model="m")
    assert stream.requests[1].arrival_s == pytest.approx(0.301012143)
    log = vllm_log.read(write_trace(VLLM_LOG), model="m")
    assert log.requests[1].arrival_s == pytest.approx(0.2850593)
    assert log.requests[0].input_tokens == 2358


def test_vidur(write_trace: Write) -> None:
    workload = vidur.read(write_trace(VIDUR_CSV), model="m")
    assert workload.requests[1].arrival_s == pytest.approx(4.314579)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (AZURE_CSV, "azure"),
        (MOONCAKE_JSONL, "mooncake"),
        (VIDUR_CSV, "vidur"),
        (VLLM_LOG, "vllm-log"),
        ("\ufeff" + AZURE_CSV, "azure"),
        ("\n\n" + MOONCAKE_JSONL, "mooncake"),
    ],
)
def test_formats_are_recognised(content: str, kind: str, write_trace: Write) -> None:
    path = write_trace(content)
    assert sniff(path) == kind
    assert len(open_workload(path, model="m").requests) in (2, 3)


HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
T0, T1 = "2023-11-16 18:15:46.0", "2023-11-16 18:15:47.0"


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (f"{HEAD}{T0},-5,4", 2, "ContextTokens is '-5'"),
        (f"{HEAD}{T0},5,0", 2, "GeneratedTokens is '0'"),
        (f"{HEAD}{T0},5,99999999999", 2, "from 1 to 10000000"),
        (f"{HEAD}{T0},5,nan", 2, "GeneratedTokens is 'nan'"),
        (f"{HEAD}{T0},5,1.5", 2, "GeneratedTokens is '1.5'"),
        (f"{HEAD}{T0},5", 2, "has 2 fields, not 3"),
        (f"{HEAD}{T1},5,5\n{T0},5,5", 3, "arrives 1 s before line 2"),
        (f"{HEAD}2023-13-16 18:15:46,5,5", 2, "month must be in 1..12"),
        (f"{HEAD}yesterday,5,5", 2, "TIMESTAMP is 'yesterday'"),
        (f"{HEAD}{T0},5,5\n2223-11-16 18:15:46.0,5,5", 3, "more than ten years"),
        ("TIMESTAMP,ContextTokens\n", 1, "no column GeneratedTokens"),
        ("a,b,c\n1,2,3", 1, "is no known trace"),
        (MOONCAKE_JSONL[:150], 2, "is not JSON"),
        ('{"input_length": 5, "output_length": 5}', 1, "has no field 'timestamp'"),
        ('{"input_length": 5, "output_length": 5, "timestamp": NaN}', 1, "timestamp is nan"),
        ('{"input_length": 5, "output_length": 5, "timestamp": 1e999}', 1, "timestamp is inf"),
        ('{"input_length": true, "output_length": 5, "timestamp": 0}', 1, "input_length is True"),
        ('{"input_length": 1' + "0" * 5000 + ', "output_length": 5, "timestamp": 0}', 1, "not usable JSON"),
        (
            '{"input_length": 1' + "0" * 999 + ', "output_length": 5, "timestamp": 0}',
            1,
            "an integer of 3319 bits",
        ),
        ('{"input_length": 5, "output_length": 5, "timestamp": 0, "hash_ids": [1, 2]}', 1, "2 block hashes"),
        ('{"input_length": 5, "output_length": 5, "timestamp": 0, "hash_ids": [-1]}', 1, "hash_ids holds -1"),
        ('{"input_length": ' + "[" * 200_000, 1, "is not usable JSON"),
        ("[1, 2]", 1, "is no known trace"),
        ('{"input_toks": 5, "output_toks": 5}', 1, "neither 'arrival_time_ns' nor 'arrival_time'"),
        (VIDUR_CSV + "3.0,5,5\n", 4, "arrives 1.31458 s before line 3"),
        (VIDUR_CSV + "inf,5,5\n", 4, "arrived_at is 'inf'"),
        (HEAD.encode() + b"2023-11-16 18:15:46.0,5,5\n\xe9t\xe9,1,1\n", 3, "byte 0xe9 at column 1"),
        (HEAD.encode("utf-16"), 1, "UTF-16"),
        (b"\x1f\x8b\x08\x00\x00", 1, "byte 0x8b"),
        (b"x" * (5 * 2**20), 1, "longer than"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(
    content: str | bytes, line: int, what: str, write_trace: Write
) -> None:
    path = write_trace(content)
    with pytest.raises(WorkloadError) as caught:
        open_workload(path, model="m")
    assert f"{path}:{line}: " in str(caught.value)
    assert what in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(path))


@pytest.mark.parametrize("content", [HEAD, "", "\n\n", VIDUR_CSV.split("\n")[0]])
def test_an_empty_trace_is_refused(content: str, write_trace: Write) -> None:
    path = write_trace(content)
    with pytest.raises(WorkloadError, match=r"holds no requests|is empty"):
        open_workload(path)


def test_places_that_are_no_trace(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="without chunk-N-trace"):
        open_workload(tmp_path)
    with pytest.raises(WorkloadError, match="neither a file nor a generator"):
        open_workload(tmp_path / "absent.csv")
    with pytest.raises(WorkloadError, match="neither a file nor a generator"):
        open_workload("nul\0byte")
    with pytest.raises(WorkloadError, match="cannot be read"):
        azure.read(tmp_path, model="m")
    with pytest.raises(WorkloadError, match="did you mean 'azure-conv'"):
        open_workload("azure-conf")


def test_a_cut_rebases_and_a_rate_scales(azure_csv: Path) -> None:
    part = open_workload(azure_csv, start_s=4.0, duration_s=10.0)
    assert [r.arrival_s for r in part.requests] == pytest.approx([0.314579])
    assert len(open_workload(azure_csv, rate_scale=3.0).requests) == 9
    with pytest.raises(WorkloadError, match="no requests in 5 s from 30 s"):
        open_workload(azure_csv, start_s=30.0, duration_s=5.0)


SEEDS = [AZURE_CSV, MOONCAKE_JSONL, VIDUR_CSV, VLLM_LOG, VLLM_STREAM]


@settings(
    max_examples=up_to(100), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    base=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=4), st.integers(0, 6)), max_size=4),
)
def test_mutated_files_give_a_workload_or_a_workload_error(
    base: str, edits: list[tuple[int, bytes, int]], write_trace: Write
) -> None:
    content = base.encode()
    for place, insert, removed in edits:
        content = content[:place] + insert + content[place + removed :]
    try:
        well_formed(open_workload(write_trace(content), model="m"))
    except WorkloadError as error:
        assert str(error)  # noqa: PT017


@settings(
    max_examples=up_to(100), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    head=st.sampled_from([HEAD, VIDUR_CSV.split("\n")[0] + "\n", MOONCAKE_JSONL.split("\n")[0] + "\n"]),
    rest=st.text(alphabet=st.sampled_from('0123456789,.-:{}[]"e n\nTtimestamp'), max_size=80),
)
def test_any_text_gives_a_workload_or_a_workload_error(head: str, rest: str, write_trace: Write) -> None:
    try:
        well_formed(open_workload(write_trace(head + rest), model="m"))
    except WorkloadError as error:
        assert str(error)  # noqa: PT017


@pytest.mark.slow
def test_the_real_azure_trace(data_dir: Path) -> None:
    workload = open_workload(data_dir / "azure" / "AzureLLMInferenceTrace_conv_2023.csv", model="m")
    well_formed(workload)
    assert len(workload.requests) == 19_366
    assert workload.requests[-1].arrival_s == pytest.approx(3501.7219, abs=1e-3)


@pytest.mark.slow
def test_the_real_mooncake_trace(data_dir: Path) -> None:
    workload = open_workload(data_dir / "mooncake" / "conversation_trace.jsonl", model="m")
    well_formed(workload)
    assert len(workload.requests) == 12_031


@pytest.mark.slow
def test_the_real_vllm_logs(data_dir: Path) -> None:
    for path in (data_dir / "llmservingsim").glob("**/requests.jsonl"):
        workload = open_workload(path, model="m")
        assert len(workload.requests) == 300
        assert workload.requests[0].arrival_s == 0.0
