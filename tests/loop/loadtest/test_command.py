from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loop.cli import root
from tests.loop.loadtest.toy import Body, Write, refuse, serving, stream

QUICK = ["--trace", "poisson", "--rate", "60", "--duration-s", "0.5", "--max-output-tokens", "4"]


def loadtest(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(root, ["loop", "loadtest", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.slow
def test_a_report_for_people_and_a_page(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    with serving(max_model_len=512) as toy:
        code, out, err = loadtest(
            toy.url, *QUICK, "--out", str(page), "--slo-ttft-s", "300", "--slo-tpot-s", "300"
        )
    assert code == 0
    assert "goodput 100.0%" in out
    assert "TTFT" in out
    assert str(page) in out
    assert "/v1/completions, token ids" in err.replace("\n", "")
    text = page.read_text()
    pictures = [part.partition("</svg>")[0] + "</svg>" for part in text.split("<svg")[1:]]
    assert len(pictures) == 2
    for picture in pictures:
        lines = ET.fromstring("<svg" + picture).iter("{http://www.w3.org/2000/svg}polyline")  # noqa: S314
        assert sum(1 for _ in lines) >= 2


@pytest.mark.slow
def test_json_is_all_of_stdout() -> None:
    with serving() as toy:
        code, out, _ = loadtest(toy.url, *QUICK, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["planned"] == report["answered"] == len(toy.asked) - 1  # one probe
    assert report["output_tokens"] == 4 * report["answered"]
    assert report["slo"] == {"ttft_s": 10.0, "tpot_s": 0.2}


@pytest.mark.slow
def test_nothing_answered_is_exit_code_1() -> None:
    asked = 0

    async def script(path: str, body: Body, write: Write) -> None:
        nonlocal asked
        asked += 1
        await (stream(write, body) if asked == 1 else refuse(write, 503, "no replica"))

    with serving(script) as toy:
        code, out, _ = loadtest(toy.url, *QUICK)
    assert code == 1
    assert "HTTP 503" in out
    assert "no replica" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ftp://h"], "not a URL"),
        (["http://127.0.0.1:9"], "no answer"),
        (["http://127.0.0.1:9", "--trace", "nonsense"], "neither a file nor a generator"),
        (["http://127.0.0.1:9", "--rate", "2", "--rate-scale", "2"], "--rate-scale"),
        (
            ["http://127.0.0.1:9", "--trace", "poisson", "--rate-scale", "0.001", "--duration-s", "0.1"],
            "request",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], says: str) -> None:
    code, out, err = loadtest(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with serving() as toy:
        code, _, err = loadtest(toy.url, *QUICK, "--out", str(tmp_path / "file" / "report.html"))
    assert code == 2
    assert "--out" in err


def _hears_ctrl_c() -> None:
    """A job in the background inherits that it does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_reports_what_was_done() -> None:
    with serving() as toy:
        command = [
            sys.executable,
            "-m",
            "loop",
            "loadtest",
            toy.url,
            "--rate",
            "20",
            "--duration-s",
            "600",
            "--json",
        ]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ),
            preexec_fn=_hears_ctrl_c,  # noqa: PLW1509  no thread holds a lock that it needs
        )
        while toy.answered < 20 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err.decode()
    report = json.loads(out)
    assert report["ended_by_hand"]
    assert 0 < report["answered"] <= report["sent"] < report["planned"]
    assert b"Traceback" not in err
