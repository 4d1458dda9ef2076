"""Live: which policy serves, and how another one comes to serve in its place.

Everything is decided at monitoring points: commands of operators first, then what the evidence says of the
watched champion and of the challenger, then what serves in the window that begins. State and records are
committed to the store before the window runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import structlog

from loop.contracts import Observation, Policy, PolicyFault, PolicySource, RequestRecord, WindowResult
from loop.contracts.live import (
    CommandKind,
    GuardFactory,
    LiveCommand,
    LiveQuestion,
    LiveRecord,
    LiveState,
    LiveStorePort,
    Stage,
)
from strategy.live.config import CanaryKind, LiveConfig
from strategy.live.desk import obey
from strategy.live.rollout import Evidence, Rollout, Transition, advance
from strategy.live.roster import Load, Roster, end
from strategy.live.shadow import PlanCheck
from strategy.live.standing import Standing
from strategy.live.store import LiveStoreError
from strategy.live.trial import ShadowTrial, TrafficTrial, Trial, WindowTrial
from strategy.live.watch import Watch

_log = structlog.get_logger(__name__)


class Live:
    """The rollout of policies in one running loop. Implements LivePort.

    Used from the serving thread alone; shadows answer in a thread of their own.
    """

    def __init__(
        self,
        first: PolicySource,
        load: Load,
        config: LiveConfig,
        *,
        guard: GuardFactory,
        check: PlanCheck,
        baseline: PolicySource | None = None,
        trusted: Mapping[str, Policy] | None = None,
        store: LiveStorePort | None = None,
        waits: bool = True,
    ) -> None:
        """`first` serves when the loop begins. `baseline` (default: `first`) is what the kill switch brings,
        and is loaded now if an operator can reach this loop. `trusted`: policies by digest that need not be
        loaded. `waits`: for replays on virtual time, in which work beside serving is waited for.

        A store that holds a state makes this the continuation of the run that left it.

        Raises:
            PolicyFault: the baseline cannot be loaded.
        """
        self.config = config
        self._guard = guard
        self._check = check
        self._store = store
        self._waits = waits
        self._roster = Roster(load, trusted or {})
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self.baseline = baseline or first
        self._first = first
        self.standing = Standing(first, config)
        self._trial: Trial | None = None
        self._serving: Policy | None = None
        """None: what the controller began with."""
        self._served: list[PolicySource] = [first]
        self._tick = 0
        self._watch = Watch(self.standing, config, frozenset({first.digest, self.baseline.digest}))
        self._uncommitted: list[LiveRecord] = []
        self._answered: list[LiveCommand] = []
        self._untaken: list[LiveRecord] = []
        if store is not None:
            self._roster.get(self.baseline)
            self._go_on(store)

    # -- what others see -----------------------------------------------------------------------------------

    @property
    def champion(self) -> PolicySource:
        """What serves, a canary aside."""
        return self.standing.champion

    @property
    def served(self) -> Sequence[PolicySource]:
        """Every policy that decided for whole windows, in order; the first one began."""
        return tuple(self._served)

    @property
    def evolving(self) -> bool:
        """False: killed or frozen."""
        return not (self.standing.killed or self.standing.frozen)

    @property
    def state(self) -> LiveState:
        """What is kept in the store."""
        return self.standing.state(self._tick)

    def take_records(self) -> tuple[LiveRecord, ...]:
        """What happened since the last call."""
        records, self._untaken = self._untaken, []
        return tuple(records)

    def source(self, digest: str) -> PolicySource:
        """A policy that a record names."""
        return self.standing.known[digest]

    # -- what happens --------------------------------------------------------------------------------------

    def propose(self, policy: PolicySource, reason: str, gain: float = 0.0) -> str:
        """Offer a proven policy; the newest offer waits while another one is on its way."""
        return self.standing.offer(Rollout(policy, reason, gain), self._tick)

    def window_ended(self, result: WindowResult, objective: float) -> None:
        """Count a window for whoever is on trial or watched."""
        theirs = 0
        if self._trial is not None:
            theirs = self._trial.faults_of(result)
            self._trial.window_ended(result)
        self._watch.window_ended(result, objective, theirs)

    def finished(self, record: RequestRecord) -> None:
        """A request is over."""
        if self._trial is not None:
            self._trial.finished(record)

    def question(self) -> LiveQuestion | None:
        """What simulated worlds should be asked about the windows that are over."""
        return self._watch.question(self._tick)

    def disappoints(self, question: LiveQuestion, values: Mapping[str, Sequence[float]]) -> bool:
        """Whether this answer will take the champion back."""
        return self._watch.disappoints(question, values)

    def judged(self, question: LiveQuestion, values: Mapping[str, Sequence[float]]) -> None:
        """Take in an answer; it is weighed at the next monitoring point."""
        self._watch.judged(question, values)

    # -- monitoring points ---------------------------------------------------------------------------------

    def next_policy(self, obs: Observation) -> Policy | None:
        """Commands, then evidence, then what serves in the window that begins."""
        self._tick = obs.tick
        if retired := self._roster.retired():
            self._pool.submit(end, retired)  # behind the questions that a shadow may still be answering
        for command in self._pending():
            self._obey(command)
        if not self.standing.killed:
            self._tell(self.standing.recovered(obs.tick))
            if not self.standing.pinned:
                self._weigh_watched()
            self._weigh_challenger(obs.now_s)
        policy = self._choose()
        self._commit()
        return policy

    def urgent_policy(self, obs: Observation) -> Policy | None:
        """The safe baseline, when the kill switch was pulled since the last look."""
        self._tick = obs.tick
        pulled = [c for c in self._pending() if c.kind is CommandKind.KILL]
        if not pulled or self.standing.killed:
            return None
        for command in pulled:
            self._obey(command)
        policy = self._choose()
        self._commit()
        return policy

    def close(self) -> None:
        """End what was loaded."""
        self._pool.shutdown(wait=True)
        self._roster.close()

    def promote(self, rollout: Rollout, record: LiveRecord) -> str:
        """Make a policy the champion; returns why it cannot be, empty: it is."""
        try:
            self._roster.get(rollout.policy)
        except PolicyFault as error:
            self._tell(
                self.standing.refuse(self._tick, rollout.policy, f"cannot be loaded: {error}", faulty=True)
            )
            return f"{rollout.policy.name} cannot be loaded: {error}"
        self._end_trial()
        self._tell(self.standing.promote(rollout, record))
        self._watch.begin()
        return ""

    def roll_back(
        self,
        reason: str,
        *,
        faulty: bool = False,
        to: PolicySource | None = None,
        evidence: Mapping[str, float] | None = None,
    ) -> str:
        """Let a predecessor serve again; returns why it cannot be, empty: it does. By `evidence` the error
        budget is spent; without (the operator's word) it is not."""
        for good in self.standing.good(to, self.baseline):
            try:
                self._roster.get(good)
            except PolicyFault as error:
                _log.warning("a predecessor cannot be loaded", policy=good.digest, reason=str(error))
                continue
            self._end_trial()
            self._tell(self.standing.roll_back(self._tick, good, reason, evidence, faulty=faulty))
            self._watch.begin()
            return ""
        return "no policy served before it that can be loaded"

    def withdraw(self, reason: str) -> None:
        """Take the challenger off its way, and the one that waits."""
        self._end_trial()
        self._tell(self.standing.withdraw(self._tick, reason))

    def kill(self, reason: str) -> None:
        """The baseline is the champion; nothing else comes until `revive`."""
        self.withdraw(reason)
        self._tell(self.standing.kill(self._tick, self.baseline, reason))
        self._watch.begin()

    def tell(self, record: LiveRecord) -> None:
        """Add a record."""
        self._tell((record,))

    # -- details -------------------------------------------------------------------------------------------

    def _weigh_watched(self) -> None:
        watched = self.standing.watched
        if watched is None:
            return
        evidence = self._watch.evidence()
        rollout, moved = advance(watched, evidence, self.config)
        if moved is not None and moved.after is Stage.ROLLED_BACK:
            self.roll_back(
                moved.reason, faulty=evidence.faults > 0, to=moved.back_to, evidence=moved.evidence
            )
            return
        self.standing.watched = rollout
        if moved is not None:
            self.tell(self._record(moved, rollout.policy))

    def _weigh_challenger(self, now_s: float) -> None:
        evidence = self._trial.evidence(now_s) if self._trial is not None else Evidence()
        if not self.standing.challenger and self.standing.begin_waiting() and self.config.shadow_windows:
            rollout = self.standing.challenger
            assert rollout is not None  # noqa: S101 - just begun
            self.tell(
                LiveRecord(
                    self._tick,
                    "stage",
                    rollout.policy.digest,
                    self.champion.digest,
                    None,
                    Stage.SHADOW,
                    rollout.reason,
                )
            )
        while (rollout := self.standing.challenger) is not None:
            rollout, moved = advance(rollout, evidence, self.config)
            self.standing.challenger = rollout
            evidence = Evidence()
            if moved is None:
                break
            self._moved(rollout, moved)
        if self.standing.challenger is not None and self._trial is None:
            self._try()

    def _moved(self, rollout: Rollout, moved: Transition) -> None:
        """Carry out a change of the challenger's stage."""
        record = self._record(moved, rollout.policy)
        if moved.after is Stage.PROMOTED:
            self.standing.challenger = None
            self.promote(rollout, record)
            return
        self._end_trial()
        if moved.after is Stage.REFUSED:
            faulty = bool(moved.evidence.get("faults") or moved.evidence.get("late"))
            self._tell(self.standing.refused(record, rollout.policy, faulty=faulty))
        else:
            self._tell((record,))

    def _record(self, moved: Transition, policy: PolicySource) -> LiveRecord:
        first = moved.before is Stage.SHADOW and not self.config.shadow_windows
        before = None if first else moved.before
        return LiveRecord(
            self._tick,
            "stage",
            policy.digest,
            self.champion.digest,
            before,
            moved.after,
            moved.reason,
            moved.evidence,
        )

    def _try(self) -> None:
        """Begin the trial of the challenger's stage."""
        rollout = self.standing.challenger
        assert rollout is not None  # noqa: S101 - the caller has looked
        try:
            challenger = self._roster.get(rollout.policy)
            champion = self._roster.get(self.champion)
        except PolicyFault as error:
            text = f"cannot be loaded: {error}"
            self._tell(self.standing.refuse(self._tick, rollout.policy, text, faulty=True))
            return
        if rollout.stage is Stage.SHADOW:
            self._trial = ShadowTrial(
                champion, challenger, self.config, self._check, self._pool, waits=self._waits
            )
        elif self.config.canary is CanaryKind.TRAFFIC:
            self._trial = TrafficTrial(champion, challenger, self.config, self._guard)
        else:
            self._trial = WindowTrial(champion, challenger, self.config, self._guard, self._watch.take_pairs)

    def _end_trial(self) -> None:
        self._trial = None
        self._watch.take_pairs()

    def _choose(self) -> Policy | None:
        """What serves now; None: no change."""
        needed = [self.champion]
        if self.standing.challenger is not None:
            needed.append(self.standing.challenger.policy)
        if self._store is not None:
            needed.append(self.baseline)
        self._roster.keep(p.digest for p in needed)
        if self._trial is not None:
            policy = self._trial.serving()
        elif self._serving is None and self.champion.digest == self._first.digest:
            return None
        else:
            policy = self._loaded_champion()
        if policy is self._serving:
            return None
        self._serving = policy
        if policy.digest != self._served[-1].digest:
            self._served.append(self.source(policy.digest))
        return policy

    def _loaded_champion(self) -> Policy:
        """The champion; or, when a stored one cannot be loaded any more, the best predecessor that can be."""
        try:
            return self._roster.get(self.champion)
        except PolicyFault as error:
            if self.roll_back(f"{self.champion.name} cannot be loaded: {error}", faulty=True):
                raise
            return self._roster.get(self.champion)

    def _pending(self) -> Sequence[LiveCommand]:
        try:
            return self._store.pending() if self._store is not None else ()
        except LiveStoreError as error:
            _log.warning("commands cannot be read", reason=str(error))
            return ()

    def _obey(self, command: LiveCommand) -> None:
        status, answer = obey(self, command)
        self._answered.append(replace(command, status=status, tick=self._tick, answer=answer))
        policy = command.policy.digest if command.policy else self.champion.digest
        text = f"the operator: {command.kind}: {answer}"
        self.tell(LiveRecord(self._tick, "command", policy, self.champion.digest, None, None, text))

    def _tell(self, records: Sequence[LiveRecord]) -> None:
        self._untaken += records
        self._uncommitted += records

    def _commit(self) -> None:
        if self._store is None:
            self._uncommitted.clear()
            return
        try:
            self._store.commit(self.state, self._uncommitted, self._answered)
        except LiveStoreError as error:  # serving goes on; all of it is written at the next point
            _log.warning("the live state cannot be kept", reason=str(error))
            return
        self._uncommitted, self._answered = [], []

    def _go_on(self, store: LiveStorePort) -> None:
        """Continue where an earlier process of this run stopped."""
        state = store.load()
        if state is None:
            return
        self._tick = state.tick
        self.standing.go_on(state)
        name = f"{self.champion.name} ({self.champion.digest})"
        text = f"the loop began again after tick {state.tick}: {name} serves"
        self.tell(
            LiveRecord(state.tick, "restart", self.champion.digest, self.champion.digest, None, None, text)
        )
