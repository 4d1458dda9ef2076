"""`autopoiesis loop replay`: every baseline and the evolving system on one volatile workload."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.live import Live
from rich.syntax import Syntax

from execution.workload import SCENARIOS, generators, open_workload, scenario, windows
from execution.workload.opening import sniff
from hw_profiles import ModelSpec, load_cluster, load_model
from loop.commands.failing import InputError, one_line_errors
from loop.compose.evolving import DEFAULT_EVALUATIONS, EvolutionConfig
from loop.compose.experiment import (
    MAIN_CLUSTER,
    MAIN_MODELS,
    MAIN_WINDOW_S,
    Experiment,
    ExperimentConfig,
)
from loop.compose.objective import Objective
from loop.contracts import ClusterEvent, PolicyFault, PolicySource, ReplayMode, Slo, Workload
from loop.runner.report import policy_diff, write_report
from loop.runner.results import ExperimentResult
from loop.runner.table import final_table, headline, live_table
from strategy.baselines import list_baselines
from strategy.evolve import check_policy
from strategy.evolve.sandbox import SandboxedPolicy
from strategy.policy import digest_of

DATA_VARIABLE = "AUTOPOIESIS_DATA"
DEFAULT_SCENARIO = "azure-volatile"
OTHER_SYSTEMS = ("evolving", "tuned_static", "best_of_random", "oracle")
"""Names in the table that are neither baselines nor the user's."""
_RESULT = TypeAdapter(ExperimentResult)


def replay(
    trace: Annotated[
        str,
        typer.Option(
            help="A trace file or folder (Azure, Mooncake, ServeGen, vLLM log, ...), a generator "
            f"(`execution workload list`), or a scenario: {', '.join(sorted(SCENARIOS))}."
        ),
    ] = DEFAULT_SCENARIO,
    cluster: Annotated[str, typer.Option(help="Packaged cluster or a YAML file.")] = MAIN_CLUSTER,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model to serve, by name, alias or YAML file; may be given several times. Default: those that "
            f"the trace names, else {', '.join(MAIN_MODELS)}."
        ),
    ] = None,
    policy: Annotated[
        list[Path] | None,
        typer.Option(help="A policy file of your own, run in a sandbox beside the baselines."),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help=f"Baseline to run, may be given several times: all (default), none, or of {', '.join(list_baselines())}."),
    ] = None,
    first: Annotated[
        str, typer.Option(help="Baseline that the evolving system begins with.")
    ] = "least_loaded",
    mode: Annotated[
        ReplayMode, typer.Option(help="batch: windows back to back; online: real arrival times.")
    ] = ReplayMode.BATCH,
    objective: Annotated[
        Objective | None,
        typer.Option(help="What evolution lowers. Default: time in batch replay, goodput online."),
    ] = None,
    window_s: Annotated[
        float, typer.Option(min=1.0, help="Seconds between two monitoring points.")
    ] = MAIN_WINDOW_S,
    rate_scale: Annotated[float, typer.Option(min=0.001, help="Multiply the request rate.")] = 1.0,
    max_windows: Annotated[int, typer.Option(min=1, help="Use at most so many windows.")] = 1000,
    slo_ttft_s: Annotated[float, typer.Option(min=0.001, help="SLO: time to first token.")] = 10.0,
    slo_tpot_s: Annotated[float, typer.Option(min=0.001, help="SLO: time per output token.")] = 0.2,
    evaluations: Annotated[
        int, typer.Option(min=0, help="Evaluations in the twin that each step of evolution may spend.")
    ] = DEFAULT_EVALUATIONS,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = max(1, min(8, os.cpu_count() or 2)),
    seed: Annotated[int, typer.Option(help="Of the workload, the hidden world and evolution.")] = 0,
    oracle: Annotated[bool, typer.Option(help="Also show the limit: the best policy of each window.")] = True,
    searched: Annotated[bool, typer.Option(help="Also run tuned static and best of N random.")] = True,
    data_dir: Annotated[
        Path | None, typer.Option(help=f"Where trace data lie. Default: ${DATA_VARIABLE}, ../shared/data.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for report.html, result.json, journal and policies.")
    ] = Path("out"),
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Replay a workload over a cluster with every baseline and with the system that rewrites its policy.

    Without options: an hour of Azure conversations, a mix shift, a burst, a lost node, 64 mixed GPUs.
    """
    with one_line_errors():
        models = choose_models(model or named_models(trace) or MAIN_MODELS)
        data = find_data(data_dir)
        workload, events = open_trace(trace, tuple(models.values()), cluster, data, seed, rate_scale)
        cut = tuple(windows(workload, window_s, events))[:max_windows]
        config = ExperimentConfig(
            title=f"{workload.name} on {Path(cluster).stem}",
            cluster=cluster,
            models=tuple(models),
            window_s=window_s,
            mode=mode,
            seed=seed,
            slo=Slo(slo_ttft_s, slo_tpot_s),
            objective=objective or (Objective.TIME if mode is ReplayMode.BATCH else Objective.GOODPUT),
            baselines=choose_baselines(baseline),
            users=read_policies(policy or ()),
            first=known_baseline(first),
            evolution=EvolutionConfig(evaluations=evaluations),
            workers=workers,
            searched=searched and evaluations > 0,
            oracle=oracle,
        )
        out = prepare(out)
        errors = Console(stderr=True)
        experiment = Experiment(config, workload, cut, out)
        with showing(experiment, errors):
            result = experiment.run()
        try:
            paths = save(result, out)
        except OSError as error:
            raise cannot_write(out, error) from error
    if json:
        sys.stdout.write(_RESULT.dump_json(result).decode() + "\n")
        return
    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    show(result, paths["report"], Console(width=None if wide else 140), evolved=evaluations > 0)


def find_data(given: Path | None) -> Path | None:
    """The folder of trace data: as given, from the environment, beside the checkout, or none."""
    if given is not None:
        if not given.is_dir():
            raise InputError(f"{given}: no such folder (--data-dir)")
        return given
    named = os.environ.get(DATA_VARIABLE)
    if named:
        if not Path(named).is_dir():
            raise InputError(f"{named}: no such folder (${DATA_VARIABLE})")
        return Path(named)
    beside = Path("../shared/data")
    return beside if beside.is_dir() else None


def choose_models(names: Sequence[str]) -> dict[str, str]:
    """What each asked model is loaded by (a packaged name, or a YAML file), and the name requests use."""
    chosen: dict[str, ModelSpec] = {}
    for name in names:
        spec = load_model(name)
        is_file = name.endswith((".yaml", ".yml"))
        chosen.setdefault(name if is_file else spec.name, spec)
    return {key: spec.name for key, spec in chosen.items()}


def named_models(trace: str) -> list[str]:
    """The models that an exported workload names, in order of their first request; none for other traces."""
    if not is_own_format(trace):
        return []
    return list(dict.fromkeys(r.model for r in open_workload(trace).requests))


def is_own_format(trace: str) -> bool:
    """Whether a trace is a file of this project's own format, which names a model for each request."""
    return trace not in SCENARIOS and exists(trace) and sniff(Path(trace)) == "native"


def exists(path: str) -> bool:
    """Whether a path, however odd, is there."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def open_trace(
    trace: str,
    models: tuple[str, ...],
    cluster: str,
    data: Path | None,
    seed: int,
    rate_scale: float = 1.0,
) -> tuple[Workload, tuple[ClusterEvent, ...]]:
    """A scenario or a generator by its name, else a trace from a file or folder.

    A single model serves all requests of a trace; several serve those that name them.
    """
    topology = load_cluster(cluster)
    if trace in SCENARIOS:
        if trace == "model-mix" and len(models) < 2:
            raise InputError(f"{trace}: needs a second model beside {models[0]}: give --model twice")
        return scenario(
            trace,
            data,
            model=models[0],
            seed=seed,
            rate_scale=rate_scale,
            nodes=tuple(topology.nodes),
            spot=tuple(d.id for d in topology.devices.values() if d.spot),
            other_model=models[1] if len(models) > 1 else None,
        )
    if not exists(trace) and trace.removeprefix("generated:") not in generators.names():
        raise InputError(
            f"{trace}: neither a file, a scenario ({', '.join(sorted(SCENARIOS))}) nor a generator "
            f"({', '.join(generators.names())}) (--trace)"
        )
    keep = len(models) > 1 and is_own_format(trace)
    workload = open_workload(trace, model=None if keep else models[0], rate_scale=rate_scale, seed=seed)
    for request in workload.requests:
        if request.model not in models:
            raise InputError(
                f"{trace}: asks for model {request.model}, which is not served; served are {', '.join(models)} "
                "(--model)"
            )
    return workload, ()


def choose_baselines(names: list[str] | None) -> tuple[str, ...]:
    """All, none, or those named, each once."""
    if not names or names == ["all"]:
        return tuple(list_baselines())
    if names == ["none"]:
        return ()
    return tuple(dict.fromkeys(known_baseline(name) for name in names))


def known_baseline(name: str) -> str:
    """The name of a baseline that there is."""
    known = list_baselines()
    if name not in known:
        raise InputError(f"{name}: no such baseline; there are {', '.join(known)}")
    return name


def read_policies(paths: Sequence[Path]) -> tuple[PolicySource, ...]:
    """Policy files of the user's, each under a name that nothing else in the table has."""
    taken = {*list_baselines(), *OTHER_SYSTEMS}
    read = []
    for path in paths:
        source = read_policy(path)
        if source.name in taken:
            source = replace(source, name=str(path))
        if source.name in taken:
            raise InputError(f"{path}: given twice (--policy)")
        taken.add(source.name)
        read.append(source)
    return tuple(read)


def read_policy(path: Path) -> PolicySource:
    """A policy file of the user's; it must keep the rules of the policy API, and load in the sandbox.

    What its functions answer is not asked here: in a run, the fallback stands in for a bad answer.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror} (--policy)") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read: it is not UTF-8 text (--policy)") from error
    problems = check_policy(text)
    if problems:
        more = f" (and {len(problems) - 1} more: `autopoiesis strategy check` lists them)"
        raise InputError(f"{path}: {problems[0]}{more if len(problems) > 1 else ''}")
    source = PolicySource(path.stem, text, digest_of(text), operator="user", note=f"from {path.name}")
    try:
        SandboxedPolicy(source).close()
    except PolicyFault as error:
        raise InputError(f"{path}: cannot be loaded: {error}") from error
    return source


def prepare(out: Path) -> Path:
    """The folder for what is written; an older journal and archive there are moved aside, never mixed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in ("journal.sqlite", "archive.sqlite"):
            if (out / name).exists():
                for suffix in ("", "-wal", "-shm"):
                    old = out / f"{name}{suffix}"
                    if old.exists():
                        old.replace(out / f"previous-{name}{suffix}")
    except OSError as error:
        raise cannot_write(out, error) from error
    return out


def cannot_write(out: Path, error: OSError) -> InputError:
    """What to say when the folder of --out is no place to write to."""
    reason = "it is a file, not a folder" if isinstance(error, FileExistsError) else error.strerror
    return InputError(f"{out}: cannot be written: {reason} (--out)")


def save(result: ExperimentResult, out: Path) -> dict[str, Path]:
    """Report, JSON, and the first and last policy as files that `--policy` takes."""
    paths = {"report": write_report(result, out / "report.html")}
    texts = {
        "result.json": _RESULT.dump_json(result).decode(),
        "first_policy.py": result.first.source,
        "last_policy.py": result.last.source,
    }
    for name, text in texts.items():
        part = out / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(out / name)
        paths[name] = out / name
    return paths


def show(result: ExperimentResult, report: Path, console: Console, *, evolved: bool = True) -> None:
    """Table, diff, and where the report is."""
    console.print(final_table(result, console.width))
    diff = policy_diff(result.first, result.last)
    if diff:
        console.print("\n[bold]How the policy was rewritten, first to last[/bold]")
        console.print(Syntax("\n".join(diff), "diff", background_color="default", word_wrap=False))
    elif evolved:
        console.print("\nThe first policy still serves: nothing that evolution tried was proven better.")
    else:
        console.print("\nThe first policy still serves: evolution was off (--evaluations 0).")
    console.print(f"\n{headline(result)}")
    console.print(f"report: {report.resolve()}", soft_wrap=True, highlight=False)


@contextmanager
def showing(experiment: Experiment, console: Console) -> Iterator[None]:
    """A live table on a terminal; a line for each change of status elsewhere."""
    title = experiment.config.title

    def table() -> object:
        return live_table(title, experiment.progress, experiment.status)

    if console.is_terminal:
        with Live(get_renderable=table, console=console, refresh_per_second=4, transient=True):  # type: ignore[arg-type]
            yield
        return
    said = ""

    def say() -> None:
        nonlocal said
        if experiment.status != said:
            said = experiment.status
            console.print(said, highlight=False)

    experiment.on_progress = say
    yield
