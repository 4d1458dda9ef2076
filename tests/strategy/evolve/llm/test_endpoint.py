"""Everything that an endpoint can do to us, over real HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from loop.contracts import Parent
from strategy.evolve.source import make_source
from strategy.evolve.static import check_policy
from strategy.evolve.synthesise.llm import LlmConfig, LlmModel, LlmSynthesiser
from tests.examples import some_slow
from tests.strategy.evolve.llm.asking import BASE, KEY, OBS, PARENTS, Asking, asking, diff_to
from tests.strategy.evolve.llm.server import Asked, Says, error, in_turn, said
from tests.strategy.evolve.worlds import knobs

GOOD = said(diff_to(3.0))
REWRITE = said(f"Less weight.\n```python\n{knobs(weight=4.0).source}```")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-from-the-environment")


def the_first(script: object, **options: object) -> Asking:
    """What it recorded until the first candidate came."""
    with asking(script, **options) as it:  # type: ignore[arg-type]
        it.until(lambda: bool(it.given))
    return it


def test_a_diff_becomes_a_candidate_with_its_lineage() -> None:
    it = the_first(in_turn(GOOD))
    (candidate, *_) = it.given
    assert candidate.source == BASE.source.replace("WEIGHT = 30.0", "WEIGHT = 3.0")
    assert not check_policy(candidate.source)
    assert (candidate.parents, candidate.operator) == ((BASE.digest,), "llm:diff")
    assert candidate.note == "The queue shall weigh 3.0."
    exchange = it.exchanges[0]
    assert (exchange.outcome, exchange.digest) == ("candidate", candidate.digest)
    assert (exchange.prompt_tokens, exchange.completion_tokens) == (1000, 200)
    assert BASE.source.strip() in exchange.prompt
    assert exchange.answer == diff_to(3.0)


def test_a_rewrite_names_the_parents_that_it_was_shown() -> None:
    other = knobs(weight=9.0, name="other")
    with asking(in_turn(REWRITE), diff_share=0.0) as it:
        got = []
        while not got:
            got = it.synthesiser.ask([Parent(BASE, 1.0), Parent(other, 2.0)], OBS, 1)
    assert got[0].operator == "llm:rewrite"
    assert set(got[0].parents) == {BASE.digest, other.digest}


def test_what_is_sent_is_the_configurations_own() -> None:
    it = the_first(in_turn(GOOD), max_output_tokens=777, temperature=0.3)
    asked = it.server.asked[0]
    assert asked.path == "/v1/chat/completions"
    assert (asked.body["model"], asked.body["max_tokens"], asked.body["temperature"]) == ("m", 777, 0.3)
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert "from-the-environment" not in json.dumps(asked.headers)


@pytest.mark.parametrize(
    ("first", "outcome", "detail"),
    [
        (error(500, "boom"), "server-error", "boom"),
        pytest.param(error(503), "server-error", "503", marks=pytest.mark.slow),
        pytest.param(Says(b"<html>Bad gateway</html>", 502), "server-error", "502", marks=pytest.mark.slow),
        (error(408), "timeout", "408"),
        pytest.param(error(429, headers={"retry-after": "0"}), "rate-limit", "429", marks=pytest.mark.slow),
        (error(429, headers={"retry-after-ms": "5"}), "rate-limit", "429"),
        pytest.param(
            error(429, headers={"retry-after": formatdate(0, usegmt=True)}),
            "rate-limit",
            "429",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            error(429, headers={"retry-after": "soon"}), "rate-limit", "429", marks=pytest.mark.slow
        ),
        (Says(b"{not json"), "server-error", "no JSON"),
        pytest.param(
            Says(b'{"choices": [{"message": {"content": "\xe9\xff"}}]}'),
            "server-error",
            "no JSON",
            marks=pytest.mark.slow,
        ),
        pytest.param(Says(b"[" * 100_000), "server-error", "no JSON", marks=pytest.mark.slow),
        (Says({"choices": []}), "server-error", "no choice"),
        pytest.param(Says([1, 2]), "server-error", "no choice", marks=pytest.mark.slow),
        pytest.param(Says(b""), "server-error", "no JSON", marks=pytest.mark.slow),
        pytest.param(Says(b"x" * (5 << 20)), "server-error", "more than", marks=pytest.mark.slow),
        pytest.param(Says({"a": "b" * 1000}, cut=True), "connection", "", marks=pytest.mark.slow),
        (Says(hang_up=True), "connection", ""),
    ],
)
def test_what_passes_is_tried_again(first: Says, outcome: str, detail: str) -> None:
    it = the_first(in_turn(first, GOOD))
    assert it.outcomes[:2] == [outcome, "candidate"]
    assert detail in it.exchanges[0].detail
    assert it.exchanges[0].detail
    assert it.exchanges[0].answer == ""
    assert it.exchanges[0].prompt == it.exchanges[1].prompt


@pytest.mark.slow
@pytest.mark.parametrize("drip_s", [0.0, 0.05])
def test_an_answer_that_does_not_end_in_time_is_given_up(drip_s: float) -> None:
    slow = Says(GOOD.body, drip_s=drip_s, hold=None if drip_s else threading.Event())
    it = the_first(in_turn(slow, GOOD), timeout_s=0.3)
    assert it.outcomes[0] == "timeout"
    assert "candidate" in it.outcomes  # after other timeouts, where the machine is busy elsewhere
    assert it.exchanges[0].completion_tokens == 4096  # it may be charged


@pytest.mark.slow
def test_retry_after_is_kept_and_no_sibling_comes_before_it() -> None:
    at: list[float] = []

    def script(asked: Asked) -> Says:
        at.append(time.monotonic())
        return error(429, headers={"retry-after": "1"}) if asked.number == 0 else said(diff_to(asked.number))

    it = the_first(script, backoff_cap_s=5.0)
    assert it.outcomes[:2] == ["rate-limit", "candidate"]
    assert at[1] - at[0] >= 1.0


def test_a_long_retry_after_rests_the_model_and_says_so() -> None:
    with asking(in_turn(error(429, "quota of the day", headers={"retry-after": "3600"}))) as it:
        it.until(lambda: bool(it.exchanges))
        for _ in range(3):
            assert it.synthesiser.ask(PARENTS, OBS, 4) == []
        assert it.synthesiser.pending == 1
        assert "quota of the day" in it.synthesiser.trouble
        assert "next try in 3" in it.synthesiser.trouble
        assert len(it.server.asked) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_permanent_error_sets_the_model_aside_with_one_message(status: int) -> None:
    with asking(in_turn(error(status, f"Incorrect API key provided: {KEY}."))) as it:
        it.until(lambda: bool(it.synthesiser.trouble))
        assert it.synthesiser.ask(PARENTS, OBS, 4) == []
        assert it.synthesiser.pending == 0
        assert it.synthesiser.trouble.startswith(
            f"no model is left to ask: m: HTTP {status}: Incorrect API key"
        )
        assert len(it.server.asked) == 1
        assert it.outcomes == ["client-error"]
        assert KEY not in it.synthesiser.trouble + str(it.exchanges)


def test_a_spent_account_is_permanent_though_it_is_a_429() -> None:
    with asking(in_turn(error(429, "check your plan", code="insufficient_quota"))) as it:
        it.until(lambda: bool(it.synthesiser.trouble))
        assert (it.synthesiser.pending, it.outcomes) == (0, ["rate-limit"])


@pytest.mark.slow
def test_the_other_models_go_on() -> None:
    def script(asked: Asked) -> Says:
        return error(404, "no such model") if asked.model == "gone" else said(diff_to(1.0 + asked.number))

    with asking(script, models=(LlmModel("gone"), LlmModel("here"))) as it:
        it.until(lambda: len(it.given) > 8)
        assert it.synthesiser.trouble == ""
    assert sum(asked.model == "gone" for asked in it.server.asked) <= 1


@pytest.mark.parametrize("in_flight", some_slow([1, 6], 1))
def test_a_request_is_worded_as_the_model_wants_it(in_flight: int) -> None:
    def script(asked: Asked) -> Says:
        if "max_tokens" in asked.body:
            return error(400, "'max_tokens' is not supported with this model. Use 'max_completion_tokens'.")
        if "temperature" in asked.body:
            return error(400, "Unsupported value: 'temperature' does not support 0.8 with this model.")
        return said(diff_to(asked.number))

    with asking(script, in_flight=in_flight) as it:
        it.until(lambda: len(it.given) > in_flight)
        assert it.synthesiser.trouble == ""
    assert it.outcomes.count("client-error") <= 2 * in_flight
    assert set(it.server.asked[-1].body) == {"model", "messages", "max_completion_tokens"}


def _tokens(asked: Asked) -> int:
    return len(asked.prompt) // 4 + asked.body["max_tokens"]


@pytest.mark.parametrize("in_flight", [1, 6])
def test_a_prompt_is_shortened_to_the_context_of_the_model(in_flight: int) -> None:
    def script(asked: Asked) -> Says:
        wanted = _tokens(asked)
        if wanted > 8000:
            return error(
                400, f"This model's maximum context length is 8000 tokens. You requested {wanted} tokens."
            )
        return said(diff_to(asked.number))

    it = the_first(script, in_flight=in_flight)
    assert it.outcomes[0] == "client-error"
    assert it.outcomes.count("client-error") <= in_flight
    first, last = it.server.asked[0], it.server.asked[-1]
    assert _tokens(last) <= 8000 < _tokens(first)


def test_what_is_refused_again_and_again_is_set_aside() -> None:
    with asking(in_turn(error(400, "no"))) as it:
        it.until(lambda: bool(it.synthesiser.trouble))
        assert it.outcomes == ["client-error"] * 3
        assert "3 requests in a row were refused" in it.synthesiser.trouble
        assert it.synthesiser.pending == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_a_dead_endpoint_costs_little_and_is_probed() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with asking(in_turn(GOOD), base_url=url, in_flight=4, breaker_pause_s=60.0, breaker_cap_s=60.0) as it:
        it.until(lambda: bool(it.synthesiser.trouble))
        for _ in range(5):
            assert it.synthesiser.ask(PARENTS, OBS, 4) == []
        assert 4 <= len(it.exchanges) <= 8
        assert set(it.outcomes) == {"connection"}
        assert "refused" in it.exchanges[0].detail.lower() or "connect" in it.exchanges[0].detail.lower()
        assert it.synthesiser.pending == 1  # a probe is due: the search may go on
        assert "next try in" in it.synthesiser.trouble
        assert it.synthesiser.cost.prompt_tokens == 0


def test_an_endpoint_that_answers_with_rubbish_counts_as_down() -> None:
    rubbish = Says({"error": {"message": "upstream is gone"}})
    with asking(in_turn(rubbish), in_flight=4, breaker_pause_s=60.0, breaker_cap_s=60.0) as it:
        it.until(lambda: bool(it.synthesiser.trouble))
        assert "upstream is gone" in it.synthesiser.trouble
        assert 4 <= len(it.server.asked) <= 8


@pytest.mark.slow
def test_an_endpoint_that_comes_back_is_used_again() -> None:
    def script(asked: Asked) -> Says:
        return error(500) if asked.number < 7 else said(diff_to(asked.number))

    with asking(script, in_flight=3, retries=1) as it:
        it.until(lambda: len(it.given) >= 3)
        assert it.synthesiser.trouble == ""
    assert it.outcomes.count("server-error") == 7


def test_several_questions_are_under_way_while_others_are_scored() -> None:
    gate = threading.Event()

    def script(asked: Asked) -> Says:
        return Says(said(diff_to(1.0 + asked.number)).body, hold=gate)

    with asking(script, in_flight=4, wait_s=0.0) as it:
        it.until(lambda: len(it.server.asked) == 4)
        assert it.given == []
        assert it.synthesiser.pending == 4
        gate.set()
        it.until(lambda: len(it.given) >= 4)
        assert it.server.busiest == 4
        assert len({candidate.digest for candidate in it.given}) == len(it.given)


def test_an_answer_to_an_older_population_is_still_used() -> None:
    gate = threading.Event()
    later = make_source(BASE.source.replace("30.0", "20.0"))
    with asking(lambda asked: Says(said(diff_to(3.0)).body, hold=gate), wait_s=0.0) as it:
        it.until(lambda: len(it.server.asked) == 1)
        gate.set()
        got: list[object] = []
        while not got:
            got = list(it.synthesiser.ask([Parent(later, 0.5)], OBS, 4))
    assert got[0].parents == (BASE.digest,)  # type: ignore[attr-defined]


def test_ask_takes_no_longer_than_it_may_and_gives_no_more_than_wanted() -> None:
    with asking(lambda asked: said(diff_to(1.0 + asked.number)), in_flight=4) as it:
        it.until(lambda: it.synthesiser.pending >= 4 and len(it.server.asked) >= 6, count=1)
        assert it.synthesiser.ask(PARENTS, OBS, 0) == []
        assert len(it.synthesiser.ask(PARENTS, OBS, 2)) <= 2
        assert it.synthesiser.ask((), None, 1) is not None


def test_close_is_prompt_while_requests_hang_and_notes_them() -> None:
    never = threading.Event()
    with asking(lambda asked: Says(GOOD.body, hold=never), in_flight=3, wait_s=0.0) as it:
        it.until(lambda: len(it.server.asked) == 3)
        threads = {t.name for t in threading.enumerate()}
        assert "llm-synthesiser" in threads
        it.synthesiser.close()
        it.synthesiser.close()
        assert "llm-synthesiser" not in {t.name for t in threading.enumerate()}
        assert it.outcomes == ["cancelled"] * 3
        assert it.synthesiser.pending == 0
        assert it.synthesiser.ask(PARENTS, OBS, 4) == []
        assert it.synthesiser.cost.requests == 3


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as in a terminal: a job in the background of a script ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ask_can_be_interrupted_and_then_closed() -> None:
    never = threading.Event()

    def script(asked: Asked) -> Says:
        if asked.number == 1:  # both are under way
            os.kill(os.getpid(), signal.SIGINT)
        return Says(GOOD.body, hold=never)

    with asking(script, in_flight=2, wait_s=30.0) as it:
        with pytest.raises(KeyboardInterrupt):
            it.synthesiser.ask(PARENTS, OBS, 4)
        assert len(it.server.asked) == 2
        it.synthesiser.close()
        assert it.outcomes == ["cancelled"] * 2
        assert "llm-synthesiser" not in {t.name for t in threading.enumerate()}


def test_an_unused_synthesiser_starts_no_thread() -> None:
    synthesiser = LlmSynthesiser(LlmConfig("http://127.0.0.1:1/v1", (LlmModel("m"),)))
    assert (synthesiser.pending, synthesiser.trouble) == (0, "")
    assert synthesiser.ask((), None, 4) == []
    synthesiser.close()
    assert "llm-synthesiser" not in {t.name for t in threading.enumerate()}


def test_the_key_is_nowhere() -> None:
    def script(asked: Asked) -> Says:
        key = asked.headers["authorization"]
        if asked.number == 0:
            return error(500, f"bad {key}")
        if asked.number == 1:
            return Says(f"oops {'.' * 40} {key}".encode())
        if asked.number == 2:
            return Says({KEY: 1})
        return said(f"Your key is {key}.\n{diff_to(3.0)}")

    it = the_first(script)
    assert KEY not in str(it.exchanges) + repr(it.given) + repr(it.synthesiser) + it.synthesiser.trouble
    assert "***" in it.exchanges[0].detail
    assert "***" in it.exchanges[3].answer
