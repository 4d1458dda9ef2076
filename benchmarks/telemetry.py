"""What sampling costs, how soon trouble is seen, and what forecasts are worth.

The genuine NVML binding runs against a fake driver library with 8 GPUs (compiled from C: tests/physical/telemetry/fake), in
processes of their own, on the machine's real CPU. *Cost* is the CPU time of the sampling threads (theirs alone) over wall
time, at ten looks a second, rounds interleaved, medians; `plain calls` asks for the same figures at the same rates by the
binding's own functions, one after another, and keeps nothing: what a loop over NVML costs at least. A real driver's
calls take longer than the fake's: that is not in here. *Detection* is the wall time from the change in the
driver to the event, changes at random phases of the sampler. *Forecast* runs on virtual time in made-up worlds that the
models do not share: a die on a heat sink in a room that drifts, loads that change without notice, a card that throttles;
arrivals that switch between rates; memory that follows the queue. Skill is 1 - MSE / MSE of persistence; coverage is of
intervals that shall hold 90 %. Without a C compiler the first two are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Options, Target, parse_options, progress, publish, run_main
from loop.contracts.telemetry import EventKind, ForecastScore, UnitReading
from physical.forecast import Forecaster
from physical.telemetry.sampler import Telemetry
from tests.physical.telemetry import fake

GPUS = 8
PERIOD_S = 0.1
COST_TARGET, DELAY_P99_TARGET_S, COVERAGE_TARGET, COVERAGE_SLACK = 0.01, 0.2, 0.9, 0.05
NOWHERE = Path("/nonexistent")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print rows and targets."""
    options = parse_options("telemetry", __doc__, argv, extend=_own_options)
    if options.extra.child:
        return child(options)
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    if fake.library() is None:
        print("no C compiler: cost and detection are left out", file=sys.stderr)
    else:
        for measure in (measure_cost, measure_detection):
            more, reached = measure(options)
            rows += more
            targets += reached
    more, reached = measure_forecast(options)
    return publish(options, rows + more, targets + reached)


def _own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--child", help=argparse.SUPPRESS)


# --- cost ----------------------------------------------------------------------------------------------------


def measure_cost(options: Options) -> tuple[list[dict[str, Any]], list[Target]]:
    """CPU share of one core: 8 GPUs and the machine, the machine alone, and plain calls of the binding."""
    rounds = 1 if options.quick else 3
    shares: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        with progress(options, f"cost, round {number + 1} of {rounds}"):
            for case in ("sampler", "machine alone", "plain calls"):
                for name, share in _in_child(options, case).items():
                    shares[name].append(share)
    rows = [
        {
            "case": f"cost/{name}",
            "unit": "% of a core",
            "median": 100 * statistics.median(found),
            "worst": 100 * max(found),
            "n": len(found),
        }
        for name, found in shares.items()
    ]
    whole = statistics.median(shares["8 GPUs and the machine"])
    return rows, [Target("cpu_share_8_gpus_10_hz", whole, COST_TARGET, "lower")]


def _cost_of_sampler(*, gpus: bool, seconds: float) -> dict[str, float]:
    with Telemetry(period_s=PERIOD_S, budget=1.0, gpus=gpus, listing=NOWHERE) as telemetry:
        time.sleep(seconds)
        share = telemetry.cpu_share
        seen = len(telemetry.samples())
    if seen != (GPUS if gpus else 0):
        raise RuntimeError(f"{seen} GPUs were sampled")
    return {"8 GPUs and the machine" if gpus else "the machine alone": share}


def _cost_of_plain_calls(seconds: float) -> dict[str, float]:
    """The same figures at the same rates, through the binding's functions."""
    from physical.telemetry.nvml import ALL_LINKS, Nvml  # noqa: PLC0415
    from physical.telemetry.readings import FAST, FIELDS, MEDIUM  # noqa: PLC0415

    library = Nvml()
    if (refused := library.open()) is not None:
        raise RuntimeError(refused.text)
    handles = [handle for _, handle in library.handles()]
    wanted = [(entry.id, ALL_LINKS if entry.scope else 0) for entry in FIELDS]
    spent, ticks = 0.0, round(seconds / PERIOD_S)
    for tick in range(ticks):
        began = time.thread_time()
        for handle in handles:
            for reading in (*FAST, *(MEDIUM if tick % 5 == 0 else ())):
                library.ask(reading.calls[0], handle, *reading.arguments)
            if tick % 10 == 0:
                library.fields(handle, wanted)
        spent += time.thread_time() - began
        time.sleep(PERIOD_S)
    library.close()
    return {"plain calls": spent / (ticks * PERIOD_S)}


# --- detection -----------------------------------------------------------------------------------------------


def measure_detection(options: Options) -> tuple[list[dict[str, Any]], list[Target]]:
    """Seconds until throttling, a lost device and a hanging call are told."""
    sessions = 2 if options.quick else 6
    delays: dict[str, list[float]] = defaultdict(list)
    for number in range(sessions):
        with progress(options, f"detection, session {number + 1} of {sessions}"):
            for name, found in _in_child(options, f"detect {options.seed + number}").items():
                delays[name] += found
    rows = [
        {
            "case": f"detection/{name}",
            "unit": "s",
            "median": statistics.median(found),
            "p99": _quantile(found, 0.99),
            "worst": max(found),
            "n": len(found),
        }
        for name, found in delays.items()
    ]
    targets = [
        Target(f"{name}_delay_p99_s", _quantile(delays[name], 0.99), DELAY_P99_TARGET_S, "lower", "s")
        for name in ("throttling", "lost device")
    ]
    return rows, targets


def _detect(machine: fake.Machine, seed: int) -> dict[str, list[float]]:
    """One session: throttle each GPU, hang one, lose each; at random phases."""
    rng = random.Random(seed)
    found: dict[str, list[float]] = {
        "throttling": [],
        "lost device": [],
        "hanging call (given up after 2 s)": [],
    }
    with Telemetry(period_s=PERIOD_S, budget=1.0, listing=NOWHERE) as telemetry:
        _told(telemetry, EventKind.APPEARED, GPUS)
        for slot in rng.sample(range(GPUS), GPUS):
            time.sleep(rng.uniform(0.05, 0.35))
            began = time.perf_counter()
            machine.gpu(slot).throttle = fake.HW_THERMAL
            _told(telemetry, EventKind.THROTTLING, len(found["throttling"]) + 1)
            found["throttling"].append(time.perf_counter() - began)
        began = time.perf_counter()
        machine.gpu(0).hang = 1
        _told(telemetry, EventKind.STALLED, 1)
        found["hanging call (given up after 2 s)"].append(time.perf_counter() - began)
        machine.gpu(0).hang = 0
        _told(telemetry, EventKind.ANSWERING, 1)
        for slot in rng.sample(range(GPUS), GPUS):
            time.sleep(rng.uniform(0.05, 0.35))
            began = time.perf_counter()
            machine.gpu(slot).error = fake.GPU_IS_LOST
            _told(telemetry, EventKind.LOST, len(found["lost device"]) + 1)
            found["lost device"].append(time.perf_counter() - began)
    return found


def _told(telemetry: Telemetry, kind: EventKind, count: int) -> None:
    """Wait until so many events of a kind were told; looks every 2 ms."""
    for _ in range(15_000):
        if sum(entry.event.kind is kind for entry in telemetry.events()) >= count:
            return
        time.sleep(0.002)
    raise RuntimeError(f"no event {kind} within 30 s")


# --- children ------------------------------------------------------------------------------------------------


def _in_child(options: Options, case: str) -> dict[str, Any]:
    """Run one case in a process that has the fake library."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        machine = fake.Machine(state)
        for slot in range(GPUS):
            machine.plug(slot)
        command = [sys.executable, "-m", "benchmarks.telemetry", "--child", case]
        done = subprocess.run(  # noqa: S603 - our own module
            [*command, *(["--quick"] if options.quick else [])],
            env=fake.environment(state), capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{case}: {done.stderr.strip()[-800:]}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def child(options: Options) -> int:
    """One case, in the process that has the fake library; prints a JSON object."""
    import os  # noqa: PLC0415 - the state file's name is handed over as the library gets it

    case, seconds = options.extra.child, 6.5 if options.quick else 8.0
    outcome: dict[str, Any]
    if case == "sampler":
        outcome = _cost_of_sampler(gpus=True, seconds=seconds)
    elif case == "machine alone":
        outcome = _cost_of_sampler(gpus=False, seconds=seconds)
    elif case == "plain calls":
        outcome = _cost_of_plain_calls(seconds)
    else:
        outcome = _detect(fake.Machine(Path(os.environ["FAKE_NVML_STATE"])), int(case.split()[1]))
    print(json.dumps(outcome))
    return 0


# --- forecast ------------------------------------------------------------------------------------------------


def measure_forecast(options: Options) -> tuple[list[dict[str, Any]], list[Target]]:
    """Skill and coverage in worlds that were never seen, and how early throttling is announced."""
    worlds, seconds = (4, 900) if options.quick else (12, 2000)
    scores: dict[tuple[str, float], list[ForecastScore]] = defaultdict(list)
    leads: list[float] = []
    false_alarms, spent, steps = 0, 0.0, 0
    with progress(options, f"forecast, {worlds} worlds of {seconds} s"):
        for number in range(worlds):
            forecaster = Forecaster()
            alarms = _Alarms()
            for reading in world(options.seed * 1000 + number, seconds):
                began = time.thread_time()
                outlook = forecaster.observe([reading])
                spent += time.thread_time() - began
                steps += 1
                alarms.see(reading, outlook.throttling[0].seconds)
            leads += alarms.leads
            false_alarms += alarms.false
            for score in forecaster.scores():
                scores[score.quantity, score.horizon_s].append(score)
    rows = [_forecast_row(quantity, horizon, found) for (quantity, horizon), found in sorted(scores.items())]
    announced = [lead for lead in leads if lead > 0]
    rows.append(
        {
            "case": "forecast/throttling announced before it came",
            "unit": "s ahead",
            "median": statistics.median(announced) if announced else math.nan,
            "share": len(announced) / len(leads) if leads else math.nan,
            "n": len(leads),
            "false_alarms": false_alarms,
        }
    )
    rows.append(
        {
            "case": "forecast/cost of one unit and step",
            "unit": "us",
            "median": 1e6 * spent / steps,
            "n": steps,
        }
    )
    targets = []
    for quantity in ("temperature_c", "queue", "memory_bytes"):
        found = scores[quantity, 15.0]
        skill = statistics.fmean(score.skill for score in found)
        off = abs(statistics.fmean(score.coverage or 0.0 for score in found) - COVERAGE_TARGET)
        targets.append(Target(f"skill_15_s/{quantity}", skill, 0.0, "higher"))
        targets.append(Target(f"coverage_off_15_s/{quantity}", off, COVERAGE_SLACK, "lower"))
    return rows, targets


def _forecast_row(quantity: str, horizon_s: float, scores: list[ForecastScore]) -> dict[str, Any]:
    told = [score.coverage for score in scores if score.coverage is not None]
    return {
        "case": f"forecast/{quantity} in {horizon_s:g} s",
        "unit": "" if quantity == "throttling" else quantity,
        "error": statistics.fmean(score.mean_absolute_error for score in scores),
        "persistence": statistics.fmean(score.persistence_error for score in scores),
        "skill": statistics.fmean(score.skill for score in scores),
        "coverage": statistics.fmean(told) if told else None,
        "n": sum(score.count for score in scores),
    }


class _Alarms:
    """Whether each onset of throttling was announced, how early, and what was announced in vain. A card that throttles on
    and off at its limit has one onset: the next one needs a minute without.
    """

    def __init__(self) -> None:
        self.leads: list[float] = []
        self.false = 0
        self._since: float | None = None
        self._quiet = 0
        self._hot_s = -math.inf

    def see(self, reading: UnitReading, seconds: float | None) -> None:
        """One step: an alarm begins with the first announcement, and was in vain when it is taken back for ten seconds."""
        hot = bool(reading.throttle)
        if hot and reading.at_s - self._hot_s > 60.0:
            self.leads.append(0.0 if self._since is None else reading.at_s - self._since)
        if hot:
            self._since, self._quiet, self._hot_s = None, 0, reading.at_s
        elif seconds is not None and seconds > 0:
            self._since = reading.at_s if self._since is None else self._since
            self._quiet = 0
        elif self._since is not None:
            self._quiet += 1
            if self._quiet > 10:
                self.false += 1
                self._since = None


def world(seed: int, seconds: int) -> Iterator[UnitReading]:
    """One card and its service, once a second."""
    rng = random.Random(seed)
    ambient = rng.uniform(24, 34)
    inner, outer = rng.uniform(0.012, 0.03), rng.uniform(0.04, 0.06)  # degrees per watt
    die, sink = rng.uniform(60, 150), rng.uniform(600, 1500)  # joules per degree
    hot_c, sink_c, limit = ambient + 5, ambient + 3, rng.uniform(66, 80)
    load, load_until, throttled = 0.1, 0.0, False
    rate, rate_until, service = 4.0, 0.0, rng.uniform(8, 14)
    queue, arrived, served = 0, 0, 0
    total, held = 80e9, 20e9
    for second in range(seconds):
        if second >= load_until:
            load, load_until = rng.choice((0.05, 0.4, 0.7, 1.0)), second + rng.expovariate(1 / 90)
        ambient += rng.gauss(0, 0.01)
        watts = 80 + 620 * load * rng.uniform(0.93, 1.0)
        throttled = hot_c > limit or (throttled and hot_c > limit - 3)
        watts = min(watts, 380) if throttled else watts
        for _ in range(10):
            flow = (hot_c - sink_c) / inner
            hot_c += 0.1 * (watts - flow) / die
            sink_c += 0.1 * (flow - (sink_c - ambient) / outer) / sink
        if second >= rate_until:
            rate, rate_until = rng.choice((2.0, 5.0, 8.0, 13.0)), second + rng.expovariate(1 / 60)
        came = sum(rng.random() < rate / 40 for _ in range(40))
        done = min(queue + came, sum(rng.random() < service / 40 for _ in range(40)))
        queue, arrived, served = queue + came - done, arrived + came, served + done
        held += 0.05 * (min(total, 20e9 + 0.8e9 * queue) - held)
        yield UnitReading(
            unit=f"world-{seed}",
            at_s=float(second),
            queue=float(queue),
            arrived=float(arrived),
            served=float(served),
            memory_used_bytes=held,
            memory_total_bytes=total,
            temperature_c=float(round(hot_c)),
            power_w=watts + rng.gauss(0, 5),
            throttle=("hw-thermal",) if throttled else (),
            slowdown_c=limit if seed % 2 else None,  # half of the cards do not tell it
        )


def _quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)]


if __name__ == "__main__":
    sys.exit(run_main(main))
