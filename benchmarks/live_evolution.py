"""Does evolution pay while it serves? The same load twice, through `loop serve`: once as it is, once evolving.

A user's view from outside: real processes, the real gateway, requests over HTTP in real time; only the GPUs are simulated
(four L40S and four L4, unlike enough that it matters where a request goes). Both runs begin with the policy named
(`--policy`, round_robin), which knows nothing of that. What is judged is the last third of the load: by then a policy
must have been written, proven in the twin, tried in shadow and on a share of the traffic, and promoted. Nothing may be
lost on the way. Virtual hardware keeps real time, so run it where a core is free.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import (
    BenchmarkInputError,
    Options,
    Target,
    parse_options,
    progress,
    publish,
    run_main,
)
from loop.contracts import Finish
from loop.contracts.live import Stage
from loop.journal_serving import ServedRequest, ServingJournal

CLUSTER = """version: 1
name: unlike
title: A node of fast cards and one of slow ones
nodes:
  - {name: fast, node: l40s-x4, attach: {eth: lan}}
  - {name: slow, node: l4-x4, attach: {eth: lan}}
networks:
  lan: {title: LAN}
sources:
  all: choice of this benchmark
"""
MODEL = "llama-3.1-8b"
SLO_TTFT_S, SLO_TPOT_S = 2.0, 0.1
READY_S = 300.0
COMMAND = (sys.executable, "-m", "loop")


@dataclass(frozen=True, slots=True)
class Ran:
    """What one run left."""

    requests: tuple[ServedRequest, ...]
    sent: int
    report: dict[str, Any]
    began_s: float
    """Arrival of the first request, on the journal's clock."""
    stages: tuple[tuple[float, str, Stage | None, str], ...]
    """(seconds after the first request, policy, stage that it reached, why)."""

    def judged(self) -> list[ServedRequest]:
        """Requests of the last third."""
        last_s = max(r.record.arrival_s for r in self.requests)
        cut_s = self.began_s + (last_s - self.began_s) * 2.0 / 3.0
        return [r for r in self.requests if r.record.arrival_s >= cut_s]


@contextmanager
def serving(options: Options, out: Path, cluster: Path, *, evolve: bool) -> Iterator[str]:
    """`loop serve` while it serves: its URL."""
    words = [*COMMAND, "serve", "--engine", "simulated", "--cluster", str(cluster), "--model", MODEL]
    words += ["--policy", options.extra.policy, "--window-s", "10", "--evaluations", "24", "--port", "0"]
    words += ["--slo-ttft-s", str(SLO_TTFT_S), "--slo-tpot-s", str(SLO_TPOT_S), "--seed", str(options.seed)]
    words += ["--evolution" if evolve else "--no-evolution", "--out", str(out)]
    with (out.parent / f"{out.name}.log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, text=True)  # noqa: S603
        try:
            yield _url(process, Path(log.name))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(120.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _url(process: Any, log: Path) -> str:
    until_s = time.monotonic() + READY_S
    while time.monotonic() < until_s and process.poll() is None:
        said = log.read_text(encoding="utf-8")
        if " at http://" in said:
            url = "http://" + said.split(" at http://", 1)[1].split("/v1", 1)[0]
            try:
                with urllib.request.urlopen(f"{url}/health/ready", timeout=5.0) as answer:  # noqa: S310
                    if answer.status == 200:
                        return url
            except (urllib.error.URLError, OSError):
                pass
        time.sleep(0.2)
    tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-8:])
    raise BenchmarkInputError(f"live_evolution: `loop serve` did not become ready:\n{tail}")


def drive(options: Options, folder: Path, *, evolve: bool, duration_s: float) -> Ran:
    """One run from beginning to end."""
    out = folder / ("evolving" if evolve else "as-it-is")
    if out.exists():  # it would go on with that run's champion
        raise BenchmarkInputError(f"{out}: is there already (--keep)")
    cluster = folder / "unlike.yaml"
    cluster.write_text(CLUSTER, encoding="utf-8")
    with serving(options, out, cluster, evolve=evolve) as url:
        words = [*COMMAND, "loadtest", url, "--trace", options.extra.trace, "--json"]
        words += ["--rate", str(options.extra.rate), "--duration-s", str(duration_s)]
        words += ["--seed", str(options.seed)]
        load = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    if load.returncode not in (0, 1) or not load.stdout.strip():
        raise BenchmarkInputError(f"live_evolution: the load test ended so: {load.stderr.strip()[-400:]}")
    return _read(out, json.loads(load.stdout))


def _read(out: Path, report: dict[str, Any]) -> Ran:
    journal = ServingJournal(out / "journal.sqlite")
    try:
        requests = tuple(journal.served())
        config = journal.config()
        began_s = min(r.record.arrival_s for r in requests)
        stages = tuple(
            (config["origin_s"] + r.tick * config["window_s"] - began_s, r.policy, r.after, r.reason)
            for r in journal.live()
            if r.kind == "stage"
        )
    finally:
        journal.close()
    return Ran(requests, int(report["sent"]), report, began_s, stages)


def figures(name: str, ran: Ran) -> dict[str, Any]:
    """A row: the last third of a run."""
    ok = [r.record for r in ran.judged() if r.record.finish is Finish.OK]
    if not ok:
        raise BenchmarkInputError(
            f"live_evolution: no request of the last third of '{name}' was answered (--rate)"
        )
    ttft = sorted(r.first_token_s - r.arrival_s for r in ok)
    tpot = [(r.last_token_s - r.first_token_s) / max(1, r.output_tokens - 1) for r in ok]
    good = sum(
        r.first_token_s - r.arrival_s <= SLO_TTFT_S and pace <= SLO_TPOT_S
        for r, pace in zip(ok, tpot, strict=True)
    )
    promoted = [(at_s, policy) for at_s, policy, stage, _ in ran.stages if stage is Stage.PROMOTED]
    return {
        "case": name,
        "requests": ran.sent,
        "not_answered": ran.sent - int(ran.report["answered"]),
        "judged": len(ok),
        "good": good / max(1, len(ran.judged())),
        "ttft_p50_s": statistics.median(ttft),
        "ttft_p99_s": ttft[int(0.99 * (len(ttft) - 1))],
        "tpot_p50_s": statistics.median(tpot),
        "e2e_mean_s": statistics.fmean(r.last_token_s - r.arrival_s for r in ok),
        "promoted": len(promoted),
        "first_promoted_s": promoted[0][0] if promoted else None,
        "rolled_back": sum(stage is Stage.ROLLED_BACK for _, _, stage, _ in ran.stages),
    }


def measure(options: Options) -> tuple[list[dict[str, Any]], list[Target]]:
    """Both runs."""
    duration_s = options.extra.seconds or (20.0 if options.quick else 420.0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.extra.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name, evolve in (("as it is", False), ("evolving", True)):
            with progress(options, f"{name}: {duration_s:g} s of load"):
                ran = drive(options, folder, evolve=evolve, duration_s=duration_s)
            rows.append(figures(name, ran))
    rows += [
        {"at_s": at_s, "policy": policy, "stage": str(stage), "why": reason}
        for at_s, policy, stage, reason in ran.stages
    ]
    plain, evolving = rows[:2]
    return rows, [
        Target("e2e_evolving_over_as_it_is", evolving["e2e_mean_s"] / plain["e2e_mean_s"], 1.0, "lower", "x"),
        Target(
            "slo_misses_evolving_over_as_it_is",
            _ratio(1 - evolving["good"], 1 - plain["good"]),
            1.0,
            "lower",
            "x",
        ),
        Target("not_answered_while_evolving", evolving["not_answered"], 0.0, "lower", "requests"),
    ]


def _ratio(one: float, other: float) -> float:
    return one / other if other else float(one > 0)


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", default="round_robin", help="what serves first (default: round_robin)")
    parser.add_argument("--trace", default="azure-conv", help="of `loop loadtest` (default: azure-conv)")
    parser.add_argument("--rate", type=float, default=13.0, help="requests a second (default: 13)")
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="of load, each run (default: 420, quick 20)"
    )
    parser.add_argument("--keep", help="keep journals and logs in this folder")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    options = parse_options("live_evolution", __doc__, argv, extend=_extend)
    rows, targets = measure(options)
    return publish(options, rows, targets)


if __name__ == "__main__":
    sys.exit(run_main(main))
