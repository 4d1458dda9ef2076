"""The small parts: settings, options, metrics, draws, meter, control messages, where vLLM lives."""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from execution.engines.tokenizer import ByteTokenizer
from execution.engines.vllm import environment, metrics, release
from execution.engines.vllm.asking import asked_of, most_tokens, problem_of
from execution.engines.vllm.child import command
from execution.engines.vllm.draw import Draw, uniform
from execution.engines.vllm.engine import VllmEngine
from execution.engines.vllm.meter import StepMeter
from execution.engines.vllm.options import VllmOptions
from execution.engines.vllm.plugin import obey
from execution.engines.vllm.settings import PluginSettings, plugin_settings, read_policy
from loop.contracts import (
    EngineError,
    EngineInfo,
    EngineLimits,
    EngineRequest,
    EngineSpec,
    PolicyError,
    SamplingParams,
)

# -- settings and options --------------------------------------------------------------------------------


def test_settings_come_from_the_section_and_the_file_from_the_environment() -> None:
    found = plugin_settings({"autopoiesis": {"ask_s": 1, "policy": "a.py"}}, {"AUTOPOIESIS_POLICY": "b.py"})
    assert (found.ask_s, found.policy) == (1.0, "a.py")
    assert plugin_settings({}, {"AUTOPOIESIS_POLICY": "b.py"}).policy == "b.py"
    assert plugin_settings(None, {}) == PluginSettings()


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"polcy": "a.py"}, "polcy"),
        ({"ask_s": "1"}, "ask_s"),
        ({"ask_s": 0}, "ask_s"),
        ({"max_faulty_steps": True}, "max_faulty_steps"),
        ("a.py", "autopoiesis"),
    ],
)
def test_settings_that_make_no_sense_are_named(section: object, named: str) -> None:
    with pytest.raises(EngineError, match=named):
        plugin_settings({"autopoiesis": section}, {})


def test_a_policy_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"none\.py"):
        read_policy(str(tmp_path / "none.py"))
    (tmp_path / "big.py").write_text("#" * 100_000)
    with pytest.raises(EngineError, match=r"big\.py.*bytes"):
        read_policy(str(tmp_path / "big.py"))


@pytest.mark.parametrize(
    "options",
    [{"mod": "server"}, {"mode": "magic"}, {"block_tokens": 16}, {"threads": "2"}, {"tp": 0}, {"eager": 1}],
)
def test_options_that_make_no_sense_are_named(options: dict[str, str | int | float | bool]) -> None:
    with pytest.raises(EngineError, match=next(iter(options))):
        VllmEngine(EngineSpec("vllm", "tiny-llama", options=options))


def test_limits_beyond_the_ceiling_are_refused_and_the_ceiling_holds_the_first_limits() -> None:
    spec = EngineSpec("vllm", "tiny-llama", limits=EngineLimits(max_num_seqs=1000))
    assert VllmOptions.of(spec).ceilings(spec) == (1000, 8192)
    with pytest.raises(ValueError, match="max_waiting"):
        VllmEngine(EngineSpec("vllm", "tiny-llama", limits=EngineLimits(max_waiting=0)))


def test_the_command_of_a_server_holds_no_key() -> None:
    spec = EngineSpec("vllm", "tiny-llama", options={"api_key": "secret", "max_adapters": 2})
    line = command("python", "/models/x", spec, VllmOptions.of(spec), 1234)
    assert "secret" not in line
    assert line[line.index("--max-loras") + 1] == "2"
    assert line[line.index("--scheduler-cls") + 1] == "execution.engines.vllm.scheduler.PolicyScheduler"


# -- releases and interpreters ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "fits"),
    [("0.32.0", True), ("0.32.4+cpu", True), ("0.33.0", False), ("0.3", False), ("", False)],
)
def test_releases(version: str, *, fits: bool) -> None:
    assert release.supported(version) is fits


def test_another_release_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "installed", lambda: "0.99.1")
    with pytest.raises(EngineError, match=r"0\.99\.1.*0\.32"):
        release.require()
    monkeypatch.setattr(release, "installed", lambda: "")
    with pytest.raises(EngineError, match="make vllm"):
        release.require()


def test_interpreters_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="/no/python"):
        environment.interpreter("/no/python")
    monkeypatch.setenv(environment.PYTHON_VARIABLE, "/nor/this")
    with pytest.raises(EngineError, match="/nor/this"):
        environment.interpreter()
    assert environment.interpreter(sys.executable) == sys.executable


def test_a_server_of_ours_finds_the_plug_in(tmp_path: Path) -> None:
    told = environment.child_environment(2, tmp_path)
    assert told["OMP_NUM_THREADS"] == "2"
    assert told["PYTHONPATH"].split(":")[:2] == [str(tmp_path), str(environment.ROOT)]
    (found,) = tmp_path.glob("*.dist-info")
    assert "execution.engines.vllm.plugin:register" in (found / "entry_points.txt").read_text()


# -- metrics ---------------------------------------------------------------------------------------------


def test_metrics_are_summed_over_labels_and_others_passed_over() -> None:
    text = """# HELP vllm:num_requests_running Number
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a}b"} 2.0
vllm:num_requests_running{engine="1",model_name="x"} 3.0
vllm:request_success_total{engine="0",finished_reason="stop"} 4.0
vllm:request_success_total{engine="0",finished_reason="abort"} 9.0
vllm:generation_tokens_total 1e3
vllm:num_preemptions_total{engine="0"} nan
vllm:prompt_tokens_total{engine="0"}
vllm:something_else 5
process_cpu_seconds_total 7
"""
    assert metrics.parse(text) == {
        metrics.RUNNING: 5.0,
        metrics.FINISHED: 4.0,
        metrics.GENERATED_TOKENS: 1000.0,
    }


def test_a_registry_reads_the_same() -> None:
    samples = [
        (metrics.WAITING, {"engine": "0"}, 2.0),
        (metrics.WAITING, {"engine": "1"}, 1.0),
        (metrics.FINISHED, {"finished_reason": "abort"}, 1.0),
        ("vllm:other", {}, 1.0),
    ]
    assert metrics.summed(samples) == {metrics.WAITING: 3.0}


# -- draws -----------------------------------------------------------------------------------------------

LOGITS = np.log(np.array([0.5, 0.25, 0.125, 0.0625, 0.0625], dtype=np.float32))


def drawn(draw: Draw, count: int = 1000) -> Counter[int]:
    return Counter(draw.token(LOGITS, position) for position in range(count))


def test_draws_follow_the_distribution() -> None:
    found = drawn(Draw(seed=1, temperature=1.0))
    for token, share in enumerate((0.5, 0.25, 0.125, 0.0625, 0.0625)):
        assert found[token] / 1000 == pytest.approx(share, abs=0.05)


def test_temperature_sharpens() -> None:
    assert drawn(Draw(seed=1, temperature=0.25))[0] > 900
    assert drawn(Draw(seed=1, temperature=0.01)) == {0: 1000}


@pytest.mark.slow
def test_truncation() -> None:
    assert set(drawn(Draw(seed=1, temperature=1.0, top_k=2))) == {0, 1}
    assert set(drawn(Draw(seed=1, temperature=1.0, top_p=0.6))) == {0, 1}
    assert set(drawn(Draw(seed=1, temperature=1.0, top_p=0.5))) == {0}
    assert set(drawn(Draw(seed=1, temperature=1.0, top_p=0.9, top_k=1))) == {0}
    assert set(drawn(Draw(seed=1, temperature=1.0, top_k=50))) == {0, 1, 2, 3, 4}


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    draw = Draw(seed=7, temperature=1.0)
    late_first = [draw.token(LOGITS, position) for position in reversed(range(50))]
    assert late_first[::-1] == [draw.token(LOGITS, position) for position in range(50)]
    assert late_first[::-1] != [Draw(8, 1.0).token(LOGITS, position) for position in range(50)]


@pytest.mark.slow  # importing torch takes seconds
def test_the_torch_engine_draws_the_same() -> None:
    torch = pytest.importorskip("torch", reason="the torch engine needs torch")
    sampler = pytest.importorskip("execution.engines.torch.sampler")
    rng = np.random.default_rng(0)
    for number in range(60):
        logits = rng.normal(size=(1, 264)).astype(np.float32) * 2
        top_p, top_k = (1.0, 0) if number % 3 else (0.8, 20)
        params = SamplingParams(temperature=0.8, top_p=top_p, top_k=top_k)
        wish = sampler.Wish(params, seed=number, position=number * 3)
        (theirs,) = sampler.sample(torch.from_numpy(logits), [wish])
        assert Draw(number, 0.8, top_p, top_k).token(logits[0], number * 3) == theirs


def test_uniform_numbers_are_uniform() -> None:
    found = [uniform(3, position) for position in range(4000)]
    assert all(0.0 <= x < 1.0 for x in found)
    assert np.mean(found) == pytest.approx(0.5, abs=0.02)


# -- what vLLM is asked ----------------------------------------------------------------------------------

INFO = EngineInfo("vllm", "m", 264, 100, 1024, 32, frozenset())
SEEDED = EngineRequest(
    "r",
    (1, 2, 3, 4),
    SamplingParams(max_tokens=10, temperature=0.7, top_p=0.9, top_k=5, seed=-1),
    generated=2,
)


def test_a_seeded_request_is_drawn_by_our_sampler_where_it_is_loaded() -> None:
    asked = asked_of(SEEDED, INFO, ByteTokenizer(), seeded_sampler=True)
    assert (asked.temperature, asked.top_p, asked.top_k, asked.seed) == (0.0, 1.0, 0, None)
    assert asked.extra["autopoiesis_temperature"] == 0.7
    assert (asked.extra["autopoiesis_position"], asked.extra["autopoiesis_seed"]) == (2, (1 << 63) - 1)
    assert asked.max_tokens == 8  # two are made already
    plain = asked_of(SEEDED, INFO, ByteTokenizer(), seeded_sampler=False)
    assert (plain.temperature, plain.top_p, plain.top_k, plain.seed) == (0.7, 0.9, 5, (1 << 63) - 1)
    assert "autopoiesis_seed" not in plain.extra


def test_an_answer_ends_with_the_context() -> None:
    long = replace(SEEDED, prompt_token_ids=(1,) * 98, sampling=SamplingParams(max_tokens=50))
    assert asked_of(long, INFO, ByteTokenizer(), seeded_sampler=True).max_tokens == 2
    assert most_tokens(long, INFO) == 4


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"prompt_token_ids": ()}, "empty"),
        ({"generated": 5}, "generated"),
        ({"prompt_token_ids": (1,) * 102}, "102"),
        ({"prompt_token_ids": (1, 264, 3)}, "264"),
        ({"prompt_token_ids": (1, -1, 3)}, "vocabulary"),
        ({"adapter": "loud"}, "loud"),
        ({"sampling": SamplingParams(max_tokens=0)}, "max_tokens"),
        ({"sampling": SamplingParams(temperature=-1.0)}, "temperature"),
        ({"sampling": SamplingParams(temperature=float("nan"))}, "temperature"),
        ({"sampling": SamplingParams(logprobs=21)}, "logprobs"),
    ],
)
def test_requests_that_can_never_be_served_are_named(wrong: dict[str, Any], named: str) -> None:
    assert named in problem_of(replace(SEEDED, **wrong), INFO, 20, ())
    assert problem_of(SEEDED, INFO, 20, ()) == ""


# -- the meter -------------------------------------------------------------------------------------------


def test_the_meter_tells_decode_from_prefill() -> None:
    meter = StepMeter()
    for _ in range(200):
        meter.learn(0.01, 0, 8)
    for _ in range(50):
        meter.learn(0.11, 500, 8)
    assert meter.decode_step_s == pytest.approx(0.01, rel=0.01)
    assert meter.prefill_tokens_per_s == pytest.approx(5000, rel=0.05)
    assert (meter.steps, meter.step_s) == (250, pytest.approx(200 * 0.01 + 50 * 0.11))


# -- control messages ------------------------------------------------------------------------------------


class Scheduler:
    """What the channel asks of a scheduler."""

    def __init__(self) -> None:
        self.limits: tuple[int | None, int | None] = (None, None)
        self.steered: list[object] = []
        self.fault: BaseException | None = None

    def report(self):
        return {"waiting": 0}

    def limit(self, seqs, tokens) -> None:
        if seqs == 99:
            raise ValueError("max_num_seqs: too many")
        self.limits = (seqs, tokens)

    def steer(self, source):
        self.steered.append(source)
        done: Future[object] = Future()
        if self.fault:
            done.set_exception(self.fault)
        else:
            done.set_result(source)
        return done


def answer(message: dict[str, object], scheduler: object = None) -> dict[str, object]:
    found = obey(scheduler or Scheduler(), message)
    return found.result(120) if isinstance(found, Future) else found


def test_messages() -> None:
    scheduler = Scheduler()
    assert answer({"do": "status"}, scheduler) == {"waiting": 0}
    assert answer({"do": "limits", "max_num_seqs": 3}, scheduler) == {"waiting": 0}
    assert scheduler.limits == (3, None)
    assert answer({"do": "policy", "name": "n", "source": "x = 1"}, scheduler) == {"waiting": 0}
    assert scheduler.steered[0].name == "n"  # type: ignore[attr-defined]
    assert answer({"do": "policy", "source": ""}, scheduler) == {"waiting": 0}
    assert scheduler.steered[1] is None


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"do": "explode"},
        {"do": "limits", "max_num_seqs": "3"},
        {"do": "limits", "max_num_seqs": True},
        {"do": "limits", "max_num_seqs": 99},
        {"do": "policy", "source": 3},
        {"do": "policy", "source": "#" * 70_000},
    ],
)
def test_messages_that_make_no_sense_change_nothing(message: dict[str, object]) -> None:
    scheduler = Scheduler()
    found = answer(message, scheduler)
    assert found["error"] == "invalid"
    assert found["message"]
    assert (scheduler.limits, scheduler.steered) == ((None, None), [])


def test_refused_policies_and_other_schedulers_are_told() -> None:
    scheduler = Scheduler()
    scheduler.fault = PolicyError("does not parse")
    assert answer({"do": "policy", "source": "x"}, scheduler) == {
        "error": "refused",
        "message": "does not parse",
    }
    found = answer({"do": "status"}, object())
    assert found["error"] == "absent"
    assert "--scheduler-cls" in str(found["message"])
