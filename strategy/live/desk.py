"""What each command of an operator does, and how it is answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from loop.contracts import PolicySource
from loop.contracts.live import CommandKind, CommandStatus, LiveCommand, LiveRecord, Stage
from strategy.live.rollout import Rollout

if TYPE_CHECKING:
    from strategy.live.live import Live


class RefusedError(ValueError):
    """A command that cannot be carried out now; the message says why, and the way out."""


def obey(live: Live, command: LiveCommand) -> tuple[CommandStatus, str]:
    """Carry out a command at a monitoring point; the answer in words."""
    try:
        return CommandStatus.DONE, _ACTS[command.kind](live, command)
    except RefusedError as error:
        return CommandStatus.REFUSED, str(error)


def _promote(live: Live, command: LiveCommand) -> str:
    _not_killed(live)
    _not_pinned(live)
    return _let_serve(live, _named(command), "the operator promoted it")


def _rollback(live: Live, _command: LiveCommand) -> str:
    _not_killed(live)
    _not_pinned(live)
    challenger = live.standing.challenger
    if challenger is not None and challenger.stage is Stage.CANARY:
        live.withdraw("the operator ended its canary")
        return f"the canary of {challenger.policy.name} is over; {live.champion.name} serves"
    if not live.standing.predecessors:
        raise RefusedError(f"{live.champion.name} has no predecessor to go back to")
    name = live.champion.name
    problem = live.roll_back(f"the operator took {name} back", faulty=True)
    if problem:
        raise RefusedError(problem)
    return f"back to {live.champion.name} ({live.champion.digest})"


def _pin(live: Live, command: LiveCommand) -> str:
    _not_killed(live)
    if command.policy is not None and command.policy.digest != live.champion.digest:
        _let_serve(live, command.policy, "the operator pinned it")
    live.withdraw("the champion was pinned")
    live.standing.pinned = True
    return f"{live.champion.name} ({live.champion.digest}) is pinned: it serves until `unpin`"


def _unpin(live: Live, _command: LiveCommand) -> str:
    if not live.standing.pinned:
        raise RefusedError("nothing is pinned")
    live.standing.pinned = False
    return f"{live.champion.name} may be replaced again"


def _kill(live: Live, _command: LiveCommand) -> str:
    if live.standing.killed:
        raise RefusedError("the kill switch is pulled already")
    live.kill("the operator pulled the kill switch")
    live.standing.pinned = False
    return f"the baseline {live.champion.name} serves; evolution rests until `revive`"


def _revive(live: Live, _command: LiveCommand) -> str:
    standing = live.standing
    if not (standing.killed or standing.frozen):
        raise RefusedError("neither killed nor frozen: there is nothing to revive")
    standing.revive()
    return f"evolution goes on from {live.champion.name}"


_ACTS: dict[CommandKind, Callable[[Live, LiveCommand], str]] = {
    CommandKind.PROMOTE: _promote,
    CommandKind.ROLLBACK: _rollback,
    CommandKind.PIN: _pin,
    CommandKind.UNPIN: _unpin,
    CommandKind.KILL: _kill,
    CommandKind.REVIVE: _revive,
}


def _let_serve(live: Live, policy: PolicySource, reason: str) -> str:
    """The operator's word stands for shadow and canary; the watch remains."""
    if policy.digest == live.champion.digest:
        raise RefusedError(f"{policy.name} ({policy.digest}) serves already")
    record = LiveRecord(
        live.state.tick,
        "stage",
        policy.digest,
        policy.digest,
        None,
        Stage.PROMOTED,
        reason,
    )
    problem = live.promote(Rollout(policy, reason), record)
    if problem:
        raise RefusedError(problem)
    return f"{policy.name} ({policy.digest}) serves, and is watched"


def _named(command: LiveCommand) -> PolicySource:
    if command.policy is None:
        raise RefusedError("no policy was named")
    return command.policy


def _not_killed(live: Live) -> None:
    if live.standing.killed:
        raise RefusedError("the kill switch is pulled: `revive` first")


def _not_pinned(live: Live) -> None:
    if live.standing.pinned:
        raise RefusedError(f"{live.champion.name} is pinned: `unpin` first")
