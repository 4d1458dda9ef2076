"""`autopoiesis physical probe` and `physical watch`: what this machine is made of, and how it is."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from physical.inventory.facts import MachineFacts
    from physical.inventory.profile import Written
    from physical.telemetry.sampler import Telemetry

app = typer.Typer(
    help="What this machine is made of, and how it is.", no_args_is_help=True, add_completion=False
)

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command()
def probe(
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="Write a cluster file here, its devices, node and links into folders beside it."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time memory, arithmetic and loading: about two seconds.")
    ] = False,
    usd_per_hour: Annotated[
        float | None, typer.Option(min=0.0, help="What this machine costs; nobody can measure that.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What this machine is made of: CPUs, memory, GPUs, links; as a profile with --out."""
    from hw_profiles import ProfileError  # noqa: PLC0415 - pydantic and YAML
    from physical.inventory.files import cluster_name, save  # noqa: PLC0415
    from physical.inventory.probe import probe as look  # noqa: PLC0415
    from physical.inventory.profile import write_profile  # noqa: PLC0415

    try:
        name = cluster_name(out) if out is not None else "here"
        if measure and not as_json:
            typer.echo("measuring...", err=True)
        facts = look(timed=measure)
        written = write_profile(facts, name, usd_per_hour=usd_per_hour)
        paths = save(written, out)[0] if out is not None else []
    except ProfileError as error:
        raise _fail(str(error)) from error
    except OSError as error:
        raise _fail(f"{error.filename or out}: cannot be written: {error.strerror or error}") from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if as_json:
        plain = asdict(facts)
        plain["cpu"]["flags"] = sorted(facts.cpu.flags)
        typer.echo(
            json.dumps(
                {
                    "found": plain,
                    "files": [str(path) for path in paths],
                    "not_measured": written.not_measured(),
                    "notes": written.notes,
                },
                indent=2,
            )
        )
        return
    _show(facts, written)
    for path in paths:
        typer.echo(f"written: {path}")


@app.command()
def watch(
    *,
    interval_s: Annotated[
        float, typer.Option("--interval", min=0.05, help="Seconds between two pictures (or lines).")
    ] = 1.0,
    duration_s: Annotated[
        float | None, typer.Option("--duration", min=0.0, help="End after so long.")
    ] = None,
    period_ms: Annotated[
        float, typer.Option("--period-ms", min=10.0, help="How often GPUs are sampled.")
    ] = 100.0,
    once: Annotated[bool, typer.Option("--once", help="One picture (or line), then end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for scripts.")] = False,
) -> None:
    """Live: load, heat, throttling, forecasts and events of every device of this machine. Ctrl-C ends it."""
    from physical.telemetry.sampler import Telemetry  # noqa: PLC0415 - numpy

    telemetry = Telemetry(period_s=period_ms / 1e3)
    try:
        with telemetry:
            _settle(telemetry)
            if as_json:
                _lines(telemetry, interval_s, 0.0 if once else duration_s)
            else:
                _live(telemetry, interval_s, 0.0 if once else duration_s)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:  # the reader has seen enough
        with suppress(OSError):
            sys.stdout.close()
        raise typer.Exit(0) from None


def _settle(telemetry: Telemetry) -> None:
    """Until the machine was looked at twice, since rates need that, and the GPUs were looked for; 20 s at most."""
    give_up = time.monotonic() + 20.0
    while time.monotonic() < give_up:
        host = telemetry.host()
        looked = bool(telemetry.samples()) or telemetry.log.count > 0
        if looked and host is not None and host.utilisation is not None:
            return
        time.sleep(0.05)


def _lines(telemetry: Telemetry, interval_s: float, duration_s: float | None) -> None:
    from physical.telemetry.render import as_json  # noqa: PLC0415 - rich

    for outlook, events in _steps(telemetry, interval_s, duration_s):
        sys.stdout.write(json.dumps(as_json(telemetry, outlook, [entry.event for entry in events])) + "\n")
        sys.stdout.flush()


def _live(telemetry: Telemetry, interval_s: float, duration_s: float | None) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    from physical.telemetry.render import screen  # noqa: PLC0415

    console = Console()
    recent: list[Any] = []
    if not console.is_terminal:  # into a file: one picture after another
        for outlook, events in _steps(telemetry, interval_s, duration_s):
            console.print(screen(telemetry, outlook, [entry.event for entry in events]))
            sys.stdout.flush()
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for outlook, events in _steps(telemetry, interval_s, duration_s):
            recent = [*recent, *(entry.event for entry in events)][-6:]
            live.update(screen(telemetry, outlook, recent), refresh=True)


def _steps(telemetry: Telemetry, interval_s: float, duration_s: float | None) -> Any:
    """(outlook, new events), once an interval; forecasts learn once a second, however often they are shown."""
    from physical.forecast import Forecaster  # noqa: PLC0415
    from physical.forecast.readings import of_gpu, of_host  # noqa: PLC0415

    forecaster = Forecaster()
    known = {}
    seen = 0
    began = due = time.monotonic()
    while True:
        known = {identity.id: identity for identity in telemetry.identities}
        readings = [of_gpu(sample, known.get(sample.device)) for sample in telemetry.samples()]
        host = telemetry.host()
        if host is not None:
            readings.append(of_host(host))
        events = telemetry.events(seen)
        seen = events[-1].number if events else seen
        yield forecaster.observe(readings), events
        now = time.monotonic()
        if duration_s is not None and now - began + interval_s > duration_s:
            return
        due = max(now, due + interval_s)
        time.sleep(due - now)


def _show(facts: MachineFacts, written: Written) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.tree import Tree  # noqa: PLC0415

    from hw_profiles.units import memory, si  # noqa: PLC0415

    cpu = facts.cpu
    tree = Tree(f"[bold]this machine[/]  (seen by {cpu.seen_by}{', NVML' if facts.gpus else ''})")
    sockets = f"{cpu.sockets} socket{'s' if cpu.sockets > 1 else ''}"
    branch = tree.add(f"{escape(cpu.model or 'CPU')}: {sockets}, {cpu.cores} cores, {cpu.threads} threads")
    for domain in cpu.numa:
        branch.add(f"memory domain {domain.id}: {memory(domain.memory_bytes)}, {len(domain.cpus)} CPUs")
    for cache in cpu.caches:
        branch.add(f"L{cache.level} {cache.kind}: {cache.count} x {memory(cache.size_bytes)}")
    for gpu in facts.gpus:
        lanes = f"PCIe {gpu.pcie_generation}.0 x{gpu.pcie_width}" if gpu.pcie_generation else "PCIe unknown"
        where = "" if gpu.numa is None else f", memory domain {gpu.numa}"
        tree.add(f"gpu{gpu.index}: {escape(gpu.name)}, {memory(gpu.memory_bytes)}, {lanes}{where}")
    for link in facts.nvlinks:
        peer = "switches" if link.peer is None else f"gpu{link.peer}"
        speed = "" if link.bytes_per_s is None else f", {si(link.bytes_per_s, 'B/s')}"
        tree.add(f"NVLink: gpu{link.gpu} - {peer}: {link.count} links{speed}")
    for nic in facts.nics:
        tree.add(f"port {nic.name}: {si(nic.bytes_per_s * 8, 'b/s')}")
    timed = facts.measured
    for index, rate in enumerate(timed.memory_bytes_per_s):
        tree.add(f"measured: memory domain {index}: {si(rate, 'B/s')}")
    if timed.numa_bytes_per_s:
        tree.add(f"measured: between memory domains: {si(timed.numa_bytes_per_s, 'B/s')}")
    if timed.fp32_flops and timed.fp64_flops and timed.load_bytes_per_s:
        tree.add(f"measured: fp32 {si(timed.fp32_flops, 'FLOP/s')}, fp64 {si(timed.fp64_flops, 'FLOP/s')}")
        tree.add(f"measured: loading {si(timed.load_bytes_per_s, 'B/s')}")
    console = Console()
    console.print(tree)
    for note in written.notes:
        console.print(f"[yellow]note:[/] {escape(note)}")
    for entry in written.not_measured():
        console.print(f"[dim]not measured: {escape(entry)}[/]")


def _fail(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(2)


if __name__ == "__main__":
    app(prog_name="physical")
