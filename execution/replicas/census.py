"""How much is waiting and running, and the state of the plane at a monitoring point."""

from __future__ import annotations

from collections.abc import Iterable

from execution.replicas.manager import ReplicaManager
from execution.replicas.ticket import Ticket
from loop.contracts import Backlog, PlaneSnapshot


def backlog(models: Iterable[str], tickets: Iterable[Ticket], manager: ReplicaManager) -> tuple[Backlog, ...]:
    """Per model: accepted and not finished."""
    held: dict[str, list[Ticket]] = {name: [] for name in models}
    for ticket in tickets:
        if ticket.held:
            held[ticket.request.model].append(ticket)
    return tuple(_of_model(name, waiting, manager) for name, waiting in held.items())


def snapshot(
    now_s: float, origin_s: float, backlogs: tuple[Backlog, ...], manager: ReplicaManager
) -> PlaneSnapshot:
    """What a policy's `plan` is shown of a live plane; `now_s` counts from the origin."""
    clock_s = now_s + origin_s
    manager.meter.touch(clock_s)
    return PlaneSnapshot(
        now_s=now_s,
        plan=manager.plan(),
        devices=manager.devices,
        replicas=tuple(replica.view(clock_s) for replica in manager.planned()),
        backlog=backlogs,
        resources=manager.resources(),
        reconfiguration_stall_s=manager.meter.stall_s,
        idle_pending_s=manager.meter.idle_pending_s,
    )


def _of_model(model: str, held: list[Ticket], manager: ReplicaManager) -> Backlog:
    waiting, tokens, running = len(held), float(sum(t.input_tokens for t in held)), 0
    for replica in manager.present():
        load = replica.load
        if replica.spec.model == model and load.in_flight:
            now_running, now_waiting = replica.counts()
            running += now_running
            waiting += now_waiting
            tokens += load.waiting_tokens * now_waiting / max(1, load.in_flight - load.started)
    return Backlog(model, waiting, int(tokens), running)
