"""Who is champion, who challenges, who came before, who is banned: the state of the live layer, and its changes.

Nothing here loads or asks a policy. Each change returns the records that tell of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loop.contracts import PolicySource
from loop.contracts.live import LiveRecord, LiveState, Stage
from strategy.live.config import LiveConfig
from strategy.live.rollout import Rollout

_RIVALS = 2
"""Of the latest champions, besides the first one."""
_REMEMBERED = 16


class Standing:
    """The state that a restart brings back."""

    def __init__(self, first: PolicySource, config: LiveConfig) -> None:
        self._config = config
        self.champion = first
        self.watched: Rollout | None = None
        """The champion's rollout; None: it came by none, so there is nothing to go back to."""
        self.challenger: Rollout | None = None
        self.waiting: Rollout | None = None
        self.predecessors: list[PolicySource] = []
        """Champions to go back to, oldest first."""
        self.champions: list[PolicySource] = [first]
        """Every champion, in order of service."""
        self.known: dict[str, PolicySource] = {first.digest: first}
        """Every policy that a record may name."""
        self.pinned = self.killed = self.frozen = False
        self._banned: dict[str, int | None] = {}
        self._spent = 0.0

    def state(self, tick: int) -> LiveState:
        """As a value."""
        subject = self.challenger or self.watched
        return LiveState(
            tick=tick,
            champion=self.champion,
            stage=self.watched.stage if self.watched else None,
            predecessors=tuple(self.predecessors),
            challenger=self.challenger.policy if self.challenger else None,
            challenger_stage=self.challenger.stage if self.challenger else None,
            pinned=self.pinned,
            killed=self.killed,
            banned=dict(self._banned),
            budget_spent=self._spent,
            frozen=self.frozen,
            evidence=dict(subject.evidence) if subject else {},
        )

    def go_on(self, state: LiveState) -> None:
        """Take over the state that an earlier process left. Its challenger begins its way anew."""
        self.champion = state.champion
        self.predecessors = list(state.predecessors)
        self.champions = [*self.champions, *state.predecessors, state.champion]
        self.known |= {p.digest: p for p in self.champions}
        self.watched = None
        if state.stage is not None:
            self.watched = Rollout(state.champion, stage=state.stage)
        self.pinned, self.killed, self.frozen = state.pinned, state.killed, state.frozen
        self._banned, self._spent = dict(state.banned), state.budget_spent
        if state.challenger is not None:
            self.waiting = Rollout(state.challenger, "on its way when the loop stopped")
            self.known[state.challenger.digest] = state.challenger

    def offer(self, rollout: Rollout, tick: int) -> str:
        """Let a proposal wait for its turn; returns why it is refused, empty: it is not."""
        policy = rollout.policy
        on_its_way = self.challenger is not None and policy.digest == self.challenger.policy.digest
        reasons = {
            "the kill switch is pulled": self.killed,
            f"{self.champion.name} is pinned": self.pinned,
            "the error budget is spent": self.frozen,
            f"{policy.name} failed before, and is banned": self.banned(policy.digest, tick),
            f"{policy.name} serves already": policy.digest == self.champion.digest,
            f"{policy.name} is on its way already": on_its_way,
        }
        refusal = next((text for text, holds in reasons.items() if holds), "")
        if not refusal:
            self.waiting = rollout
            self.known[policy.digest] = policy
        return refusal

    def begin_waiting(self) -> bool:
        """Let the proposal that waits begin its way."""
        if self.waiting is None:
            return False
        self.challenger, self.waiting = self.waiting, None
        return True

    def banned(self, digest: str, tick: int) -> bool:
        """Whether a policy may not be proposed now."""
        if digest not in self._banned:
            return False
        until = self._banned[digest]
        return until is None or tick < until

    def rivals(self, tick: int) -> tuple[PolicySource, ...]:
        """Who a watched champion is compared with: the first policy and the latest champions before it."""
        before = {p.digest: p for p in (self.champions[0], *self.champions[-1 - _RIVALS : -1])}
        return tuple(p for d, p in before.items() if d != self.champion.digest and not self.banned(d, tick))

    def good(self, first: PolicySource | None, baseline: PolicySource) -> Iterator[PolicySource]:
        """Whom to go back to, best first: never the champion itself, never whom faults have banned for good."""
        seen = {self.champion.digest}
        for policy in (
            *((first,) if first else ()),
            *reversed(self.predecessors),
            self.champions[0],
            baseline,
        ):
            if policy.digest in seen or (
                policy is not baseline and self._banned.get(policy.digest, 0) is None
            ):
                continue
            seen.add(policy.digest)
            yield policy

    def promote(self, rollout: Rollout, record: LiveRecord) -> tuple[LiveRecord, ...]:
        """Another champion. Who challenged or waited was proven against the old one, and goes."""
        old, policy = self.champion, rollout.policy
        records = []
        if self.watched is not None and self.watched.stage is Stage.PROMOTED:
            records.append(
                LiveRecord(
                    record.tick,
                    "stage",
                    old.digest,
                    policy.digest,
                    Stage.PROMOTED,
                    Stage.KEPT,
                    f"{old.name} kept its promise until {policy.name} took over",
                    self.watched.evidence,
                )
            )
        records += self.withdraw(record.tick, f"it was proven against {old.name}")
        self._takes_over(policy)
        self.predecessors = [*self.predecessors, old][-_REMEMBERED:]
        self._banned.pop(policy.digest, None)
        evidence = dict(record.evidence) | ({"predicted_gain": rollout.gain} if rollout.gain else {})
        return (
            *records,
            LiveRecord(
                record.tick,
                record.kind,
                policy.digest,
                policy.digest,
                record.before,
                Stage.PROMOTED,
                record.reason,
                evidence,
            ),
        )

    def roll_back(
        self,
        tick: int,
        good: PolicySource,
        reason: str,
        evidence: Mapping[str, float] | None,
        *,
        faulty: bool,
    ) -> tuple[LiveRecord, ...]:
        """A former champion takes over again, and is watched like a new one."""
        bad, watched = self.champion, self.watched
        records = [*self.withdraw(tick, f"it was proven against {bad.name}")]
        self._ban(bad.digest, tick, faulty=faulty)
        self._takes_over(good)
        at = next((i for i, p in enumerate(self.predecessors) if p.digest == good.digest), 0)
        self.predecessors = self.predecessors[:at]
        records.append(
            LiveRecord(
                tick,
                "stage",
                bad.digest,
                good.digest,
                watched.stage if watched else None,
                Stage.ROLLED_BACK,
                f"{reason}: back to {good.name}",
                evidence or {},
            )
        )
        if evidence is not None:
            records += self._spend(tick, 1.0 if faulty else self._config.regret_cost)
        return tuple(records)

    def refuse(self, tick: int, policy: PolicySource, reason: str, *, faulty: bool) -> tuple[LiveRecord, ...]:
        """A policy that cannot go on."""
        stage = self.challenger.stage if self.challenger else None
        self.known[policy.digest] = policy
        record = LiveRecord(
            tick,
            "stage",
            policy.digest,
            self.champion.digest,
            stage,
            Stage.REFUSED,
            f"{policy.name} {reason}",
        )
        return self.refused(record, policy, faulty=faulty)

    def refused(self, record: LiveRecord, policy: PolicySource, *, faulty: bool) -> tuple[LiveRecord, ...]:
        """The challenger ends its way, and is banned for a while."""
        self.challenger = None
        self._ban(policy.digest, record.tick, faulty=faulty)
        return (record,)

    def withdraw(self, tick: int, reason: str) -> tuple[LiveRecord, ...]:
        """The challenger and whoever waits go, through no fault of theirs."""
        gone = [r for r in (self.challenger, self.waiting) if r is not None]
        stages = [self.challenger.stage if self.challenger else None, None][-len(gone) :] if gone else []
        self.challenger = self.waiting = None
        return tuple(
            LiveRecord(
                tick,
                "stage",
                r.policy.digest,
                self.champion.digest,
                stage,
                Stage.REFUSED,
                f"{r.policy.name} withdrawn: {reason}",
                r.evidence,
            )
            for r, stage in zip(gone, stages, strict=True)
        )

    def kill(self, tick: int, baseline: PolicySource, reason: str) -> tuple[LiveRecord, ...]:
        """The baseline serves, and there is nothing to go back to."""
        bad, stage = self.champion, self.watched.stage if self.watched else None
        self.killed = True
        self.known[baseline.digest] = baseline
        if bad.digest == baseline.digest:
            return ()
        self._takes_over(baseline)
        self.watched, self.predecessors = None, []
        return (LiveRecord(tick, "stage", bad.digest, baseline.digest, stage, Stage.ROLLED_BACK, reason),)

    def revive(self) -> None:
        """Evolution may go on, with the whole error budget."""
        self.killed = self.frozen = False
        self._spent = 0.0

    def recovered(self, tick: int) -> tuple[LiveRecord, ...]:
        """A window has passed: a part of the error budget is there again."""
        each = self._config.budget_recovery_windows
        if not self._spent or not each:
            return ()
        self._spent = max(0.0, self._spent - 1.0 / each)
        if not self.frozen or self._spent > self._config.error_budget - 1.0:
            return ()
        self.frozen = False
        digest = self.champion.digest
        text = "the error budget has recovered: evolution goes on"
        return (LiveRecord(tick, "budget", digest, digest, None, None, text, {"spent": self._spent}),)

    def _spend(self, tick: int, cost: float) -> tuple[LiveRecord, ...]:
        self._spent += cost
        budget = self._config.error_budget
        if self.frozen or not cost or self._spent < budget:
            return ()
        self.frozen = True
        digest = self.champion.digest
        text = (
            f"rollbacks have spent the error budget ({self._spent:g} of {budget:g}): evolution is frozen, "
            f"{self.champion.name} serves on; it goes on when the budget has recovered, or by `revive`"
        )
        return (LiveRecord(tick, "budget", digest, digest, None, None, text, {"spent": self._spent}),)

    def _takes_over(self, policy: PolicySource) -> None:
        self.champion = policy
        self.champions.append(policy)
        self.known[policy.digest] = policy
        self.watched = Rollout(policy, stage=Stage.PROMOTED)

    def _ban(self, digest: str, tick: int, *, faulty: bool) -> None:
        windows = self._config.fault_cooldown_windows if faulty else self._config.cooldown_windows
        if windows != 0:
            self._banned[digest] = None if windows is None else tick + windows
