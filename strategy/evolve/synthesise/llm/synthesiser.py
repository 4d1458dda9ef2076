"""The `llm` synthesiser: language models write candidates, several questions under way while others are scored.

All state but the two queues of what is done lives in one background thread, so nothing needs a lock. A
caller's `ask` tops up the flight and takes what is ready; answers that come late are handed out later, with the
parents that they were made from.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from loop.contracts import Evaluation, Exchange, Observation, Parent, PolicySource, SynthesisCost
from strategy.evolve.synthesise.llm.background import Background
from strategy.evolve.synthesise.llm.bandit import ModelBandit, reward_of
from strategy.evolve.synthesise.llm.budget import Ledger
from strategy.evolve.synthesise.llm.client import ChatClient, import_openai
from strategy.evolve.synthesise.llm.config import LlmConfig
from strategy.evolve.synthesise.llm.lessons import Lessons
from strategy.evolve.synthesise.llm.line import Line, ModelState
from strategy.evolve.synthesise.llm.parents import others, ranked
from strategy.evolve.synthesise.llm.prompt import FOCI, Brief, build_prompt
from strategy.evolve.synthesise.llm.question import Question, put

_log = structlog.get_logger(__name__)
_AUTHORS = 4096
"""Candidates whose model is remembered."""
_PATIENCE = 6
"""Questions in a row without a candidate after which a model is asked less often."""


class LlmSynthesiser:
    """Asks an OpenAI-compatible endpoint for policies. Implements the Synthesiser port.

    `record` is called with every exchange, in the thread that calls `ask` or `close`. `goal` says in words
    what the objective is. Not for use by several threads at once, but for `pending`, `cost` and `trouble`.

    Raises:
        LlmConfigError: the `openai` package is missing.
    """

    def __init__(
        self,
        config: LlmConfig,
        *,
        seed: int = 0,
        record: Callable[[Exchange], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        goal: str = "total execution time",
    ) -> None:
        import_openai()
        self._config = config
        self._record = record
        self._clock = clock
        self._goal = goal
        self._rng = random.Random(seed)
        self._states = [
            ModelState(model, config.max_prompt_tokens, config.max_output_tokens) for model in config.models
        ]
        expected = (config.max_prompt_tokens // 2, config.max_output_tokens // 2)
        self._bandit = ModelBandit(config.models, expected)
        self._ledger = Ledger(config.token_budget, config.usd_budget)
        self._lessons = Lessons()
        self._authors: dict[str, str] = {}
        self._seen: set[str] = set()
        self._told: deque[tuple[PolicySource, Evaluation, float | None]] = deque()
        self._ready: deque[PolicySource] = deque()
        self._exchanges: deque[Exchange] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._background = Background("llm-synthesiser")
        self._line: Line | None = None
        self._client: ChatClient | None = None
        self._done = asyncio.Event()
        self._hindrance = ""
        self._failure: BaseException | None = None
        self._deadline_s = float("inf")
        self._closed = False

    @property
    def pending(self) -> int:
        """Answers under way or waiting to be taken; at least 1 while an endpoint that is down or wants to be
        left alone will be tried again."""
        if self._closed:
            return 0
        return len(self._tasks) + len(self._ready) or int(self._rests())

    @property
    def cost(self) -> SynthesisCost:
        """Of all requests that are over; what an endpoint did not count is estimated."""
        return self._ledger.cost

    @property
    def trouble(self) -> str:
        """Why nothing is asked at the moment, in words; empty: all is well."""
        if all(state.set_aside for state in self._states):
            reasons = "; ".join(f"{state.model.name}: {state.set_aside}" for state in self._states)
            return f"no model is left to ask: {reasons}"
        if self._clock() >= self._deadline_s:
            return f"the deadline of {self._config.deadline_s:g} s has passed"
        if self._hindrance and not self._tasks:
            return self._hindrance
        line = self._line
        if line is not None and line.breaker.is_open:
            return f"{self._config.base_url} does not answer ({line.last_fault}); next try in {line.breaker.opens_in_s:.0f} s"
        now_s = self._clock()
        alive = [state for state in self._states if not state.set_aside]
        if line is not None and not self._tasks and all(state.not_before_s > now_s for state in alive):
            fruitless = max(state.fruitless for state in alive)
            why = (
                f"the last {fruitless} answers were of no use" if fruitless >= _PATIENCE else line.last_fault
            )
            return f"no model may be asked now ({why}); next try in {self._rest_s(line):.0f} s"
        return ""

    def ask(self, parents: Sequence[Parent], obs: Observation | None, count: int) -> list[PolicySource]:
        """At most `count` candidates that are ready; waits up to `wait_s` when none is. Never raises for what
        an endpoint or a model does."""
        if self._closed or count < 1:
            return []
        if parents or self._tasks:
            self._background.run(self._advance(tuple(parents), obs, count))
        self._flush()
        if self._failure is not None:
            raise self._failure
        return [self._ready.popleft() for _ in range(min(count, len(self._ready)))]

    def tell(self, candidate: PolicySource, evaluation: Evaluation, parent_objective: float | None) -> None:
        """What became of a candidate of this synthesiser: it decides which model is asked, and stands in the
        next prompts."""
        self._told.append((candidate, evaluation, parent_objective))

    overhear = tell
    """The same of a candidate that another synthesiser made: a lesson too, to no model's credit."""

    def close(self) -> None:
        """Give up on what is under way, note it, and end the thread; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._background.is_running:
            try:
                self._background.run(self._shut_down(), timeout_s=1.5)
            except TimeoutError:
                _log.warning("the llm synthesiser's connections did not close in time")
            self._background.stop()
        self._flush()

    def _flush(self) -> None:
        while self._exchanges:
            exchange = self._exchanges.popleft()
            if self._record is not None:
                self._record(exchange)

    # What follows runs in the background thread.

    async def _advance(self, parents: tuple[Parent, ...], obs: Observation | None, count: int) -> None:
        """Learn what was told, top up the flight, and wait a little when nothing is ready."""
        while self._told:
            self._learn(*self._told.popleft())
        line = self._line or self._connect()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._config.wait_s
        while True:
            self._done.clear()
            self._top_up(line, parents, obs, count)
            left_s = until_s - loop.time()
            if self._ready or left_s <= 0 or not (self._tasks or self._rests()):
                return
            if not self._tasks:
                left_s = min(left_s, max(0.01, self._rest_s(line)))
            try:
                await asyncio.wait_for(self._done.wait(), left_s)
            except TimeoutError:
                continue

    def _connect(self) -> Line:
        self._client = ChatClient(self._config)
        self._line = Line(
            self._config,
            self._client,
            ledger=self._ledger,
            rng=self._rng,
            clock=self._clock,
            note=self._exchanges.append,
        )
        if self._config.deadline_s is not None:
            self._deadline_s = self._line.deadline_s = self._clock() + self._config.deadline_s
        return self._line

    def _top_up(self, line: Line, parents: tuple[Parent, ...], obs: Observation | None, count: int) -> None:
        """Begin questions until the flight is full, or something hinders it. While the endpoint is down there
        is one, after a pause."""
        self._hindrance = ""
        probing = line.breaker.is_open
        limit = 1 if probing else self._config.in_flight
        while len(self._tasks) < limit and len(self._ready) - count < self._config.in_flight:
            if self._closed or self._clock() >= self._deadline_s or not parents:
                return
            if probing and line.breaker.opens_in_s > 0:
                return
            question = self._question(line, parents, obs)
            if question is None:
                return
            task = asyncio.create_task(self._put(question, line))
            self._tasks.add(task)
            task.add_done_callback(self._over)

    def _question(self, line: Line, parents: tuple[Parent, ...], obs: Observation | None) -> Question | None:
        """A question that the budget allows, to the model that promises most; None: there is none."""
        now_s = self._clock()
        among = {s.model.name: s for s in self._states if not s.set_aside and s.not_before_s <= now_s}
        form = "diff" if self._rng.random() < self._config.diff_share else "rewrite"
        focus = self._rng.choice(FOCI)
        bases = ranked(parents, self._rng)
        while among:
            state = among.pop(self._bandit.choose(self._rng, among))
            for base in bases:
                brief = Brief(form, base, others(base, parents, self._rng), self._goal, focus)
                prompt = build_prompt(brief, obs, self._lessons, state.prompt_limit, line.estimator.tokens)
                if prompt is None:
                    self._hindrance = f"no parent fits into a prompt of {state.prompt_limit} tokens"
                    continue
                reservation = line.reserve(state, prompt.messages)
                if reservation is not None:
                    self._hindrance = ""
                    return Question(state, brief, prompt, reservation)
                self._hindrance = line.shortage(state, prompt.messages)
                break
        return None

    async def _put(self, question: Question, line: Line) -> None:
        answer = await put(question, line, self._seen)
        name = question.state.model.name
        if answer.answered:
            self._bandit.charge(name, answer.tally.prompt_tokens, answer.tally.completion_tokens)
        if answer.candidate is not None:
            self._authors[answer.candidate.digest] = name
            while len(self._authors) > _AUTHORS:
                del self._authors[next(iter(self._authors))]
            self._ready.append(answer.candidate)
            question.state.fruitless = 0
        elif answer.answered:
            self._bandit.reward(name, 0.0)
            self._slow_down(question.state)

    def _slow_down(self, state: ModelState) -> None:
        """A model that gives nothing of use, time after time, is asked ever less often."""
        state.fruitless += 1
        if state.fruitless >= _PATIENCE:
            pause_s = self._config.backoff_s * 2.0 ** min(state.fruitless - _PATIENCE, 32)
            state.not_before_s = self._clock() + min(self._config.breaker_cap_s, pause_s)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
        self._done.set()

    def _learn(self, candidate: PolicySource, evaluation: Evaluation, parent_objective: float | None) -> None:
        ratio = self._lessons.learn(candidate, evaluation, parent_objective)
        name = self._authors.pop(candidate.digest, None)
        if name is not None:
            self._bandit.reward(name, reward_of(ratio if evaluation.death is None else None))

    def _rests(self) -> bool:
        """Whether nothing can be sent now, but later. (A model that gave nothing of use for long has no more
        ideas for now: that is no reason to wait for it.)"""
        line = self._line
        if line is None or self._hindrance or self._clock() >= self._deadline_s:
            return False
        alive = [s for s in self._states if not s.set_aside and s.fruitless < _PATIENCE]
        now_s = self._clock()
        return bool(alive) and (line.breaker.is_open or all(s.not_before_s > now_s for s in alive))

    def _rest_s(self, line: Line) -> float:
        """Seconds until a model may be asked again."""
        alive = [state.not_before_s for state in self._states if not state.set_aside]
        return max(line.breaker.opens_in_s, min(alive, default=0.0) - self._clock())

    async def _shut_down(self) -> None:
        everything = asyncio.all_tasks() - {asyncio.current_task()}  # an interrupted `ask` among them
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, return_exceptions=True)
        if self._client is not None:
            await asyncio.wait_for(self._client.close(), 1.0)
