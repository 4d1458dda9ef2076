"""`autopoiesis physical apply PLAN.yaml`: a plan carried out on this machine, through the gate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from physical.gate import Done, Gate, Mutation, Refusal
    from physical.gate.gate import DryRun

REFUSED = 3
"""Exit code of a plan that the gate refuses; 1 is one that failed and was undone."""


def apply(
    plan: Annotated[Path, typer.Argument(help="Plan file: `actions`, or `models` with `launch`.")],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and how it would be undone.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    state: Annotated[Path, typer.Option(help="Directory of the gate's journal and logs.")] = Path("out/gate"),
    node: Annotated[
        str | None, typer.Option(help="Which node of the plan this machine is [the only one].")
    ] = None,
    stop_others: Annotated[
        bool, typer.Option("--stop-others", help="Stop what the gate runs and the plan does not name.")
    ] = False,
    allow_pid: Annotated[
        list[int] | None, typer.Option(help="A process that may be touched though the gate did not start it.")
    ] = None,
    allow_device: Annotated[
        list[str] | None, typer.Option(help="A GPU whose power may be limited, by index or UUID.")
    ] = None,
    changes_per_minute: Annotated[
        int, typer.Option(min=0, help="Changes that are allowed in a minute.")
    ] = 60,
    min_running: Annotated[int, typer.Option(min=0, help="Processes that must stay running.")] = 0,
    max_share_stopped: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the running processes one plan may stop.")
    ] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Start, stop, pin and limit processes as PLAN says: all of it, or nothing.

    Exit code 3: refused by a rule, nothing was done. 1: a step failed, what came before was undone.
    """
    from physical.gate import Gate, GateRules, RefusedError  # noqa: PLC0415
    from physical.gate.gate import FailedError  # noqa: PLC0415
    from physical.gate.journal import JournalError  # noqa: PLC0415
    from physical.gate.local import LocalActuator  # noqa: PLC0415
    from physical.gate.plan_actions import PlanFileError, mutations_of, read_plan  # noqa: PLC0415
    from physical.gate.power import NvmlPower  # noqa: PLC0415

    actuator = LocalActuator(state, NvmlPower)
    rules = GateRules(
        changes_per_minute=changes_per_minute,
        max_share_stopped=max_share_stopped,
        min_running=min_running,
        allowed_devices=tuple(allow_device or ()),
        allowed_pids=tuple(allow_pid or ()),
    )
    gate = Gate(actuator, state / "journal.jsonl", rules)
    try:
        read = read_plan(plan)
        mutations = mutations_of(
            plan, read, node=node, running=sorted(actuator.running()), stop_others=stop_others
        )
        if not _may_go_on(gate, mutations, dry_run=dry_run, yes=yes, as_json=as_json):
            return
        done = gate.apply(mutations)
    except (PlanFileError, JournalError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except RefusedError as error:
        _complain(error.refusals)
        raise typer.Exit(REFUSED) from error
    except FailedError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted: what had been begun was undone", err=True)
        raise typer.Exit(130) from error
    _report(done, actuator.running(), as_json=as_json)


def _may_go_on(gate: Gate, mutations: Sequence[Mutation], *, dry_run: bool, yes: bool, as_json: bool) -> bool:
    """Show what would be done; False: that is all that is wanted. Exits where the gate refuses."""
    shown = gate.dry_run(mutations)
    if dry_run or shown.refusals or not as_json:
        _tell(shown, as_json=as_json)
    if shown.refusals:
        if not dry_run:
            _note_refusal(gate, mutations)
        raise typer.Exit(REFUSED)
    if not dry_run and not yes and any(step.needed for step in shown.steps):
        typer.confirm("Do it?", abort=True, err=True)
    return not dry_run


def _report(done: Done, running: dict[str, int], *, as_json: bool) -> None:
    if as_json:
        told = {
            "plan": done.plan,
            "changed": [str(m) for m in done.changed],
            "unchanged": [str(m) for m in done.unchanged],
            "recovered": list(done.recovered),
            "running": running,
        }
        typer.echo(json.dumps(told, indent=2))
        return
    if done.recovered:
        typer.echo(f"first undone, left behind by a crash: {'; '.join(done.recovered)}")
    typer.echo(f"done: {len(done.changed)} changed, {len(done.unchanged)} as they were")


def _note_refusal(gate: Gate, mutations: Sequence[Mutation]) -> None:
    """Let the journal know, too."""
    from physical.gate import RefusedError  # noqa: PLC0415

    try:
        gate.apply(mutations)
    except RefusedError:
        return


def _tell(shown: DryRun, *, as_json: bool) -> None:
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "steps": [
                        {"do": str(s.mutation), "needed": s.needed, "now": s.now, "undo": s.undo}
                        for s in shown.steps
                    ],
                    "refusals": [
                        {"rule": r.rule.value, "place": r.place, "why": r.why} for r in shown.refusals
                    ],
                    "undone_first": list(shown.unfinished),
                },
                indent=2,
            )
        )
        return
    for text in shown.unfinished:
        typer.echo(f"first undo, left behind by a crash: {text}")
    for number, step in enumerate(shown.steps):
        typer.echo(f"{number}. {step}")
    _complain(shown.refusals)


def _complain(refusals: Sequence[Refusal]) -> None:
    for refusal in refusals:
        place = f"step {refusal.place}" if refusal.place >= 0 else "the plan"
        typer.echo(f"refused, {place}: {refusal}", err=True)
