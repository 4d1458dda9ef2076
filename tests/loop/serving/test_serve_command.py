"""`autopoiesis loop serve` as its users have it: a process, the openai client, operators, crashes and signals."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from loop.contracts import Finish
from loop.journal_serving import ServingJournal
from tests.loop.live_world import edited

COMMAND = (sys.executable, "-m", "loop")
LIMIT_S = 400.0
LAST = edited("to_the_last", "route", "return len(replicas) - 1")
BROKEN = edited("broken", "route", 'raise ValueError("route is broken")')


@dataclass
class Server:
    """One running server and what it has said."""

    process: subprocess.Popen[str]
    out: Path
    lines: list[str]
    errors: list[str]

    @property
    def url(self) -> str:
        return next(line.split(" at ")[1].strip() for line in self.lines if line.startswith("serving "))

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=LIMIT_S)

    def wait(self) -> int:
        return self.process.wait(LIMIT_S)

    def engines(self) -> dict[int, int]:
        """Replica -> pid, of those that serve now."""
        with ServingJournal(self.out / "journal.sqlite") as journal:
            alive = {r.id for r in journal.served_replicas() if r.ready_s is not None and r.ended_s is None}
            return {e.replica: e.pid for e in journal.served_events() if e.replica in alive and e.pid}

    def family(self) -> set[int]:
        """Every process below it."""
        found, waiting = set(), [self.process.pid]
        while waiting:
            pid = waiting.pop()
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waiting += [int(word) for word in (task / "children").read_text().split()]
            found.add(pid)
        return found


def until(what: object, limit_s: float = LIMIT_S) -> None:
    end = time.monotonic() + limit_s
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def serving(out: Path, *flags: str) -> Iterator[Server]:
    arguments = [*COMMAND, "serve", "--out", str(out), *flags]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "AUTOPOIESIS_CACHE": str(out.parent / "cache")}
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    server = Server(process, out, [], [])

    def read(stream: object, into: list[str]) -> None:
        for line in stream:  # type: ignore[attr-defined]
            into.append(line)  # noqa: PERF402 - others look on, line by line

    readers = [
        threading.Thread(target=read, args=(process.stdout, server.lines), daemon=True),
        threading.Thread(target=read, args=(process.stderr, server.errors), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        yield server
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for reader in readers:
            reader.join(60)


def ready(server: Server) -> None:
    until(
        lambda: server.process.poll() is not None or any(line.startswith("  curl") for line in server.lines)
    )
    assert server.process.poll() is None, "".join(server.errors)


def answered(client: openai.OpenAI, text: str = "Hello", tokens: int = 24) -> str:
    """A streamed answer."""
    model = client.models.list().data[0].id
    parts = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": text}],
        max_tokens=tokens,
        temperature=0.0,
        seed=7,
        stream=True,
    )
    return "".join(part.choices[0].delta.content or "" for part in parts if part.choices)


def strategy(*words: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "strategy", *words)
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


async def stream_many(url: str, count: int, tokens: int) -> list[str]:
    """So many streams at once."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=LIMIT_S) as client:
        model = (await client.models.list()).data[0].id

        async def one(number: int) -> str:
            made = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": f"Question {number}"}],
                max_tokens=tokens,
                temperature=0.0,
                seed=number,
                stream=True,
            )
            return "".join([part.choices[0].delta.content or "" async for part in made if part.choices])

        return list(await asyncio.gather(*(one(n) for n in range(count))))


SIMULATED = ("--engine", "simulated", "--slots", "2", "--port", "0", "--window-s", "1")


@pytest.mark.slow
def test_a_simulated_server_from_the_first_request_to_ctrl_c(tmp_path: Path):
    """Clients stream, an operator promotes and a broken policy changes nothing, a replica is killed, Ctrl-C ends it."""
    policy, broken = tmp_path / "to_the_last.py", tmp_path / "broken.py"
    policy.write_text(LAST.source, encoding="utf-8")
    broken.write_text(BROKEN.source, encoding="utf-8")
    out = tmp_path / "out"
    settings = tmp_path / "serve.yaml"
    settings.write_text(
        "options: {answer_tokens: 0.0, time_scale: 0.5}\npolicy: round_robin\nevolution: {evaluations: 2}\n",
        encoding="utf-8",
    )
    with serving(out, *SIMULATED, "--config", str(settings)) as server:
        ready(server)
        with server.client() as client:
            whole = answered(client)
            assert len(whole) == 24
            answer = strategy("promote", "--file", str(policy), "--run", str(out), "--wait", "300")
            assert answer.returncode == 0, answer.stderr
            assert "to_the_last" in answer.stdout
            assert answered(client) == whole  # the same seed, whoever routes

            # a replica dies in the midst of streams: each goes on elsewhere, to the same text
            expected = asyncio.run(stream_many(server.url, 8, 400))
            box: list[list[str]] = []
            thread = threading.Thread(target=lambda: box.append(asyncio.run(stream_many(server.url, 8, 400))))
            killed = max(server.engines())
            pid = server.engines()[killed]
            thread.start()
            until(lambda: _in_flight(server.url) >= 4 or not thread.is_alive())
            os.kill(pid, signal.SIGKILL)
            thread.join(LIMIT_S)
            assert box == [expected]

            # what raises is taken back by its faults, and every request is answered meanwhile
            strategy("promote", "--file", str(broken), "--run", str(out), "--wait", "300")
            assert answered(client) == whole
            until(lambda: "rolled-back" in strategy("status", "--run", str(out)).stdout)
            assert answered(client) == whole
            until(lambda: len(server.engines()) == 2)
        family = server.family()
        assert len(family) > 5
        os.kill(server.process.pid, signal.SIGINT)
        assert server.wait() == 0, "".join(server.errors)
    until(lambda: not any(alive(pid) for pid in family))
    assert "Traceback" not in "".join(server.errors)
    assert re.search(r"served 2\d requests \(0 failed, 0 cancelled\)", server.lines[-1])
    with ServingJournal(out / "journal.sqlite") as journal:
        records = [s.record for s in journal.served()]
        assert {r.finish for r in records} == {Finish.OK}
        assert sum(r.retries for r in records) >= 1
        assert {s.policy for s in journal.served()} >= {LAST.digest, BROKEN.digest}
        assert "died" in {e.kind for e in journal.served_events()}
        assert all(finished for _, _, finished in journal.runs())


def _in_flight(url: str) -> float:
    text = httpx.get(url.removesuffix("/v1") + "/metrics", timeout=LIMIT_S).text
    found = re.findall(r"^autopoiesis_replica_in_flight\{[^}]*\} (\S+)", text, re.MULTILINE)
    return max(map(float, found), default=0.0)


@pytest.mark.slow
def test_the_second_ctrl_c_ends_at_once_and_leaves_no_process(tmp_path: Path):
    settings = tmp_path / "serve.yaml"
    settings.write_text("options: {answer_tokens: 0.0, time_scale: 50.0}\n", encoding="utf-8")
    with serving(tmp_path / "out", *SIMULATED, "--config", str(settings)) as server:
        ready(server)
        thread = threading.Thread(
            target=lambda: contextlib.suppress(openai.APIError).__enter__() or _try(server), daemon=True
        )
        thread.start()
        until(lambda: _in_flight(server.url) >= 1)
        family = server.family()
        os.kill(server.process.pid, signal.SIGINT)
        until(lambda: any("in flight have" in line for line in server.errors))
        os.kill(server.process.pid, signal.SIGINT)
        assert server.wait() == 130
        until(lambda: not any(alive(pid) for pid in family))
        thread.join(60)
    assert "Traceback" not in "".join(server.errors)


def _try(server: Server) -> None:
    with contextlib.suppress(openai.OpenAIError, httpx.HTTPError), server.client() as client:
        answered(client, tokens=2000)


def counters_read(journal: Path) -> bool:
    """Engines' counters are journaled now and then: a short run may end before the first time."""
    with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
        return bool(db.execute("SELECT count(*) FROM served_sample").fetchone()[0])


@pytest.mark.slow
def test_the_torch_engine_serves_the_small_model(tmp_path: Path):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: pip install 'autopoiesis[torch]'")
    out = tmp_path / "out"
    with serving(out, "--slots", "1", "--port", "0", "--window-s", "2", "--no-evolution", "--json") as server:
        until(
            lambda: (
                server.process.poll() is not None or any(line.startswith("  curl") for line in server.errors)
            )
        )
        assert server.process.poll() is None, "".join(server.errors)
        server.lines += [line for line in server.errors if line.startswith("serving ")]
        with server.client() as client:
            first, second = answered(client), answered(client)
            assert first == second
            model = client.models.list().data[0].id
            whole = client.completions.create(model=model, prompt="Once upon", max_tokens=8, temperature=0.0)
            assert whole.usage is not None
            assert whole.usage.completion_tokens <= 8
            with pytest.raises(openai.NotFoundError):
                client.completions.create(model="another", prompt="Once upon")
        until(lambda: counters_read(out / "journal.sqlite"))
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.wait() == 0, "".join(server.errors)
    report = json.loads(server.lines[-1])
    assert (report["finished"], report["failed"]) == (3, 0)
    with ServingJournal(out / "journal.sqlite") as journal:
        assert [r.engine for r in journal.served_replicas()] == ["torch"]
        assert list(journal.served_samples())


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--engine", "tensorflow"), "engine"),
        (("--policy", "nowhere.py"), "neither a policy file nor one of default"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--engine", "simulated", "--model", "no-such-model"), "no-such-model"),
        (("--engine", "simulated", "--cluster", "nowhere"), "nowhere"),
        (("--engine", "simulated", "--tokens", "nowhere"), "token"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path: Path, flags: tuple[str, ...], word: str):
    from typer.testing import CliRunner  # noqa: PLC0415

    from loop.cli import root  # noqa: PLC0415

    result = CliRunner().invoke(root, ["loop", "serve", "--out", str(tmp_path / "out"), "--for", "0", *flags])
    assert result.exit_code == 2, result.output
    assert word in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_one_line(tmp_path: Path):
    from typer.testing import CliRunner  # noqa: PLC0415

    from loop.cli import root  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        flags = ["--engine", "simulated", "--slots", "1", "--no-evolution", "--port", port, "--for", "0"]
        result = CliRunner().invoke(root, ["loop", "serve", "--out", str(tmp_path / "out"), *flags])
    assert result.exit_code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
