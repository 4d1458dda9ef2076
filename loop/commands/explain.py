"""`autopoiesis loop explain`: what was seen at a tick, what was decided, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loop.commands.explain_devices import devices_in_words, gate_in_words
from loop.commands.failing import InputError, one_line_errors, refuse_other_files
from loop.compose.explaining import decide_again
from loop.journal import Decision, Journal


def explain(
    tick: Annotated[int, typer.Argument(help="Number of the monitoring point.")],
    journal: Annotated[Path, typer.Option(help="The journal of a run, which `loop replay` writes.")] = Path(
        "out/journal.sqlite"
    ),
    check: Annotated[
        bool, typer.Option(help="Ask the policy the same question again, in a sandbox, and compare.")
    ] = False,
) -> None:
    """Say in words what was seen and decided at one tick of a journaled run."""
    with one_line_errors():
        if not journal.is_file():
            raise InputError(f"{journal}: no such journal (--journal); `autopoiesis loop replay` writes one")
        refuse_other_files(journal, "a journal", frozenset({"tick"}), "ticks", "--journal")
        console = Console()
        with Journal(journal) as book:
            decisions = {d.tick: d for d in book.decisions()}
            if tick not in decisions:
                known = f"0 to {max(decisions)}" if decisions else "none"
                raise InputError(f"{journal}: no tick {tick}; there are {known}")
            decision = decisions[tick]
            source = book.source(decision.policy)
            after = decisions.get(tick + 1)
            until_s = after.observation.now_s if after is not None else math.inf
            devices, gate = devices_in_words(journal, tick), gate_in_words(journal, decision, until_s)
            for line in in_words(decision, f"{source.name} ({source.digest})", devices, gate):
                console.print(line, highlight=False, soft_wrap=True)
            for step in book.evolution():
                if step.tick == tick:
                    console.print(f"evolution: {step.reason}", highlight=False, soft_wrap=True)
            for record in book.live(tick=tick):
                console.print(f"live: {record.reason}", highlight=False, soft_wrap=True)
            if check and decision.by_fallback:
                console.print("the policy gave no usable answer at this tick: the fallback decided")
            elif check:
                differences = decide_again(decision, source)
                for text in differences:
                    console.print(f"DIFFERS {text}", style="red", highlight=False, soft_wrap=True)
                if differences:
                    raise typer.Exit(1)
                console.print("decided again: the same answer, bit for bit")


def in_words(
    decision: Decision, policy: str, devices: Sequence[str] = (), gate: Sequence[str] = ()
) -> list[str]:
    """One decision, in lines of plain words; `devices` and `gate` are lines on them, in their place."""
    obs = decision.observation
    lines = [f"tick {decision.tick} at {obs.now_s:,.1f} s, policy {policy}"]
    for d in obs.demand:
        lines.append(
            f"seen: {d.model}: {d.finished} finished in the last window ({d.input_tokens_mean:,.0f} in, "
            f"{d.output_tokens_mean:,.0f} out on average), TTFT p99 {d.ttft_p99_s:,.1f} s, "
            f"{d.goodput:.0%} met the SLO; {d.waiting} waiting with {d.waiting_input_tokens:,} prompt tokens"
        )
    up = sum(1 for d in obs.devices if d.available)
    changed = f"; changed: {', '.join(obs.changes)}" if obs.changes else ""
    lines.append(f"seen: {up} of {len(obs.devices)} devices, {len(obs.replicas)} replicas{changed}")
    lines += devices
    hurting = [f"{name} {value:+.2f}" for name, value in obs.signals if value]
    lines.append(
        f"felt: pain {obs.pain:.2f}, pleasure {obs.pleasure:.2f} ({', '.join(hurting) or 'nothing'})"
    )
    if not decision.replanned:
        lines.append("decided: keep the plan; a change was not worth its disturbance")
    else:
        before = {r.key for r in obs.plan.replicas}
        after = {r.key for r in decision.plan.replicas}
        why = "a model had no replica left" if decision.forced else "the trigger fired"
        lines.append(
            f"decided: replan, since {why}: start {len(after - before)}, stop {len(before - after)}, keep "
            f"{len(after & before)} replicas; {decision.plan.reason or 'no reason given'} "
            f"(took {decision.solve_s:.2f} s)"
        )
    lines += gate
    if decision.result is not None:
        r = decision.result
        lines.append(
            f"came of it: {r.total_s:,.1f} s = {r.serving_s:,.1f} serving + {r.solve_s:,.2f} solve + "
            f"{r.reconfiguration_s:,.1f} reconfiguration; {r.stats.finished} requests, "
            f"{r.stats.goodput:.0%} good, {r.faults.total} faults"
        )
    return lines
