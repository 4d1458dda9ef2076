"""`autopoiesis loop serve`: real engines behind an OpenAI-compatible gateway, and a policy that rewrites itself."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from hw_profiles.performance.coefficients import CoefficientsError
from loop.commands.failing import InputError, one_line_errors
from loop.commands.inputs import cannot_write, prepare, read_policy
from loop.commands.serve_view import line, page
from loop.compose.experiment import baseline_source
from loop.compose.serving import ServingReport, ServingSession
from loop.compose.serving_config import ServingConfig, ServingConfigError, load_serving_config
from loop.compose.serving_data import StartError
from loop.compose.serving_world import build_serving_world
from loop.contracts import EngineError, PlanError, PolicyFault, PolicySource
from loop.gateway import AccessError, GatewayError
from loop.logs import configure_logging
from strategy.baselines import list_baselines
from strategy.evolve.synthesise.recipes import default_policy
from strategy.live import LiveStoreError

_USERS = (
    ServingConfigError,
    StartError,
    PlanError,
    EngineError,
    GatewayError,
    AccessError,
    PolicyFault,
    LiveStoreError,
    CoefficientsError,
)


def serve(
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file; flags come before what it says.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model to serve: a built-in one (tiny-llama), a directory of weights, or, simulated, a packaged "
            "profile. May be given several times."
        ),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="torch (default), vllm or simulated.")] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Packaged cluster or a YAML file. Default: slots of this machine.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Engine processes of one core each, instead of a cluster.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help=f"What serves first: default, a policy file, or of {', '.join(list_baselines())}."),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="First plan: a file of `physical plan --out`. Default: the policy's own."
        ),
    ] = None,
    dry_run: Annotated[
        bool | None,
        typer.Option(
            "--dry-run/--no-dry-run",
            help="Keep the first plan; only tell what each plan after it would change.",
        ),
    ] = None,
    window_s: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds between monitoring points.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Default: this machine alone (127.0.0.1).")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Default: 8000, or the next free one; 0: any.")
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Bearer tokens, TOKEN [TIER] a line. Default: $AUTOPOIESIS_TOKENS."
        ),
    ] = None,
    slo_ttft_s: Annotated[float | None, typer.Option(min=0.001, help="SLO: time to first token.")] = None,
    slo_tpot_s: Annotated[float | None, typer.Option(min=0.0001, help="SLO: time per output token.")] = None,
    evolution: Annotated[
        bool | None, typer.Option("--evolution/--no-evolution", help="Rewrite the policy meanwhile.")
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="Evaluations in the twin that a step of evolution may spend.")
    ] = None,
    evolve_execution: Annotated[
        bool | None,
        typer.Option(
            "--evolve-execution/--no-evolve-execution",
            help="Torch engines compile what is hot in the background, prove it, and swap it in.",
        ),
    ] = None,
    int8: Annotated[
        bool | None,
        typer.Option("--int8/--no-int8", help="With it: decode with int8 weights; answers change a little."),
    ] = None,
    coefficients: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Of `profiles calibrate`. Default: OUT/coefficients.json.gz."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of engines and evolution.")] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of journal, live store and archive [out/serve].")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew, instead of with the champion of the last run in OUT.")
    ] = False,
    for_s: Annotated[
        float | None, typer.Option("--for", min=0.0, metavar="SECONDS", help="Serve so long, then stop.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON at the end, and nothing else on stdout.")
    ] = False,
) -> None:
    """Serve models on this machine, or on a simulated cluster, with a policy that rewrites itself meanwhile.

    Without options: the small built-in model on two torch engines, on http://127.0.0.1:8000.
    """
    flags: dict[str, Any] = {
        "models": [{"model": m} for m in model] if model else None,
        "engine": engine,
        "cluster": cluster,
        "slots": slots,
        "policy": policy,
        "plan": plan,
        "gate": _given(dry_run=dry_run),
        "window_s": window_s,
        "host": host,
        "port": port,
        "token_file": tokens,
        "slo_ttft_s": slo_ttft_s,
        "slo_tpot_s": slo_tpot_s,
        "coefficients": coefficients,
        "seed": seed,
        "out": out,
        "evolution": _given(enabled=evolution, evaluations=evaluations),
        "execution": _given(evolve=evolve_execution, int8=int8),
    }
    with one_line_errors(), _users_errors():
        told = load_serving_config(config, flags)
        _engines_are_there(told)
        folder = _folder(told, fresh=fresh)
        first = _first(told.policy)
        world = build_serving_world(told, folder)
        session = ServingSession(
            told, world, first, folder, fresh=fresh, on_ready=lambda s: _ready(s, quiet=as_json)
        )
        with _showing(session, Console(stderr=True)):
            report = session.run(for_s=for_s)
    _farewell(report, folder, as_json=as_json)
    if report.failure:
        raise typer.Exit(1)


def _given(**values: object) -> dict[str, object] | None:
    """Those that are given; None: none is."""
    return {k: v for k, v in values.items() if v is not None} or None


@contextmanager
def _users_errors() -> Iterator[None]:
    """What the user can mend is one line."""
    try:
        yield
    except _USERS as error:
        raise InputError(str(error)) from error


def _engines_are_there(config: ServingConfig) -> None:
    """Raises InputError where the package of an engine is not installed."""
    for model in config.served:
        engine = config.engine_of(model)
        elsewhere = model.python or config.python
        if engine == "simulated" or elsewhere or importlib.util.find_spec(engine) is not None:
            continue
        raise InputError(
            f"engine {engine} needs the package {engine}: pip install 'autopoiesis[{engine}]', or serve a simulated "
            "cluster: --engine simulated"
        )


def _folder(config: ServingConfig, *, fresh: bool) -> Path:
    out = Path(config.out).resolve()
    if fresh:
        return prepare(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    return out


def _first(name: str) -> PolicySource:
    """The policy that is meant."""
    if name == "default":
        return default_policy()
    if name in list_baselines():
        return baseline_source(name)
    if not Path(name).exists():
        known = ", ".join(("default", *list_baselines()))
        raise InputError(f"{name}: neither a policy file nor one of {known} (--policy)")
    return read_policy(Path(name))


def _ready(session: ServingSession, *, quiet: bool) -> None:
    """Where it is, and how to ask it something."""
    world, status = session.world, session.status
    model = world.models[0].name
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32})
    token = " -H 'authorization: Bearer TOKEN'" if session.protected else ""
    lines = [
        f"serving {', '.join(m.name for m in world.models)} at {session.url}/v1",
        f"  policy {status.champion}{_went_on(session)}; evolution {_evolution(session)}",
        f"  curl {session.url}/v1/chat/completions -H 'content-type: application/json'{token} -d {shlex.quote(body)}",
        f"  autopoiesis strategy status --run {_short(session.out)}; Ctrl-C stops",
    ]
    if quiet:
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()
        return
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _went_on(session: ServingSession) -> str:
    return ", as when it last stopped (--fresh begins anew)" if session.went_on else ""


def _evolution(session: ServingSession) -> str:
    section = session.config.evolution
    if not section.enabled:
        return "off"
    return f"on, {section.evaluations} evaluations a step, every {session.config.window_s:g} s at most"


def _short(path: Path) -> str:
    """Relative to here, where that is shorter."""
    relative = os.path.relpath(path)
    return shlex.quote(min(relative, str(path), key=len))


def _farewell(report: ServingReport, out: Path, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(asdict(report)) + "\n")
        return
    cut = f", {report.cut} cut at the end" if report.cut else ""
    typer.echo(
        f"served {report.finished} requests ({report.failed} failed, {report.cancelled} cancelled{cut}) in "
        f"{report.windows} windows; {report.promotions} policies promoted; journal: {_short(out)}"
    )


@contextmanager
def _showing(session: ServingSession, console: Console) -> Iterator[None]:
    """A live page on a terminal; a line for each thing that happens elsewhere. What is logged is told there too."""
    status = session.status

    def logged(text: str) -> None:
        if "event='replica " not in text:  # that is told in its own words
            status.happened(text)

    def say(text: str) -> None:
        console.print(line(text), highlight=False, soft_wrap=True, markup=False)

    configure_logging(tell=logged)
    try:
        if console.is_terminal:
            with Live(
                get_renderable=lambda: page(status, console.width),
                console=console,
                refresh_per_second=4,
                transient=True,
            ):
                yield
        else:
            status.say = say
            yield
    finally:
        configure_logging()
