"""What the user gave to `loop replay`: data, models, trace, baselines, policy files, folder; each checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from execution.workload import SCENARIOS, generators, open_workload, scenario
from execution.workload.opening import sniff
from hw_profiles import ModelSpec, load_cluster, load_model
from loop.commands.failing import InputError
from loop.contracts import ClusterEvent, PolicyFault, PolicySource, Workload
from strategy.baselines import list_baselines
from strategy.evolve import check_policy
from strategy.evolve.sandbox import SandboxedPolicy
from strategy.live import FILE_NAME, LiveStore
from strategy.policy import digest_of

DATA_VARIABLE = "AUTOPOIESIS_DATA"
OTHER_SYSTEMS = ("evolving", "tuned_static", "best_of_random", "oracle")
"""Names in the table that are neither baselines nor the user's."""


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
    """The folder for what is written; an older journal and archive there are moved aside, never mixed.

    Raises:
        InputError: it cannot be written to, or a loop serves there.
    """
    if (out / FILE_NAME).exists():
        with LiveStore(out / FILE_NAME) as store:
            if store.attended():
                raise InputError(f"{out}: a loop serves there: end it first, or use another folder (--out)")
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
