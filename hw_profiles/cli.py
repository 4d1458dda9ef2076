"""`autopoiesis profiles`: look at hardware, model and cluster profiles, check them, fit the model's speed."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from hw_profiles.errors import ProfileError
from hw_profiles.loader import Shelf, load_cluster, load_model, packaged, problems_in, profile_file, shown
from hw_profiles.profile import Profile
from hw_profiles.schema import ModelSpec
from hw_profiles.yamlfile import suggestion
from loop.lazy_commands import add_lazily

if TYPE_CHECKING:
    from hw_profiles.topology import Topology

app = typer.Typer(
    help="What hardware exists, and how fast it is.", no_args_is_help=True, add_completion=False
)
add_lazily(
    app,
    "calibrate",
    "hw_profiles.performance.cli:calibrate",
    about="Fit operator times and engine overheads from measurements, and write them with their provenance.",
)


class Kind(StrEnum):
    """What there are profiles of."""

    DEVICES = "devices"
    LINKS = "links"
    NODES = "nodes"
    CLUSTERS = "clusters"
    MODELS = "models"


@contextmanager
def refusing() -> Iterator[None]:
    """A ProfileError, or a file that cannot be written, as one line on stderr and exit code 2."""
    try:
        yield
    except (ProfileError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@app.command("list")
def list_(
    kinds: Annotated[list[Kind] | None, typer.Argument(help="All five when none is named.")] = None,
    as_json: Json = False,
) -> None:
    """Tables of the packaged devices, links, node shapes, clusters and models."""
    from hw_profiles import show  # noqa: PLC0415 - rich's tables, not needed for --json

    wanted = list(dict.fromkeys(kinds or list(Kind)))
    with refusing():
        shelf_of = _shelves()
        if as_json:
            listed = {kind.value: [_plain(p) for p in shelf_of[kind].all()] for kind in wanted}
            typer.echo(json.dumps(listed, indent=2))
            return
        catalogue = packaged()
        tables = {
            Kind.DEVICES: lambda: show.devices_table(catalogue.devices.all()),
            Kind.LINKS: lambda: show.links_table(catalogue.links.all()),
            Kind.NODES: lambda: show.nodes_table(catalogue.nodes.all()),
            Kind.CLUSTERS: lambda: show.clusters_table(map(load_cluster, catalogue.clusters.names())),
            Kind.MODELS: lambda: show.models_table(catalogue.models.all()),
        }
        console = Console()
        for kind in wanted:
            console.print(tables[kind]())


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Any profile by name or alias, or a YAML file.")],
    as_json: Json = False,
    svg: Annotated[Path | None, typer.Option(help="Draw a cluster into this file.")] = None,
) -> None:
    """One profile with the source of each figure; a cluster as a tree, with --svg as a picture."""
    from hw_profiles import show as view  # noqa: PLC0415 - rich's tables, not needed for --json
    from hw_profiles.topology import Topology  # noqa: PLC0415 - networkx, not needed for --help

    with refusing():
        found = _any_profile(name)
        if svg is not None:
            if not isinstance(found, Topology):
                raise ProfileError(f"--svg draws clusters, and '{found.name}' is none")
            from hw_profiles.svg import draw  # noqa: PLC0415

            _write(svg, draw(found))
        if as_json:
            typer.echo(json.dumps(_plain(found), indent=2))
        elif svg is not None:
            typer.echo(f"drawn: {svg}")
        elif isinstance(found, Topology):
            Console().print(view.cluster_view(found))
        else:
            Console().print(view.profile_view(found))


@app.command()
def validate(
    files: Annotated[
        list[Path] | None, typer.Argument(help="The packaged profiles when none is given.")
    ] = None,
    found: Annotated[
        str | None,
        typer.Option(
            metavar="FOUND",
            help="Compare one declared cluster (name or file) with this one, as `physical probe --out` writes it, "
            "or with `here`: this machine, probed now.",
        ),
    ] = None,
    node: Annotated[str | None, typer.Option(help="Which of the declared nodes FOUND is.")] = None,
    as_json: Json = False,
) -> None:
    """Check profile files; a line for each problem, exit code 2 when there is one.

    With --found: name each difference between declared and found, exit code 1 when there is one.
    """
    if found is not None or node is not None:
        _compare(files or [], found, node, as_json=as_json)
        return
    paths = files or packaged().files()
    problems = [problem for path in paths for problem in problems_in(path)]
    if as_json:
        listed = [{"file": p.file, "line": p.line, "message": p.message} for p in problems]
        typer.echo(json.dumps({"files": [shown(p) for p in paths], "problems": listed}, indent=2))
    else:
        for problem in problems:
            typer.echo(str(problem), err=True)
    if problems:
        raise typer.Exit(2)
    if not as_json:
        typer.echo(f"{len(paths)} profile{'s' if len(paths) != 1 else ''}, no problem")


def _compare(declared: list[Path], found: str | None, node: str | None, *, as_json: bool) -> None:
    """`validate --found`."""
    from hw_profiles.compare import compare  # noqa: PLC0415 - networkx, not needed for --help

    with refusing():
        if found is None or len(declared) != 1:
            raise ProfileError("comparing takes one declared cluster and --found FOUND (a file, or `here`)")
        wanted = load_cluster(str(declared[0]))
        result = compare(wanted, _probed() if found == "here" else load_cluster(found), node=node)
    if as_json:
        plain = {"equal": result.equal, "differences": list(map(asdict, result.differences))}
        typer.echo(json.dumps(plain | {"not_compared": list(result.skipped)}, indent=2))
    else:
        for difference in result.differences:
            typer.echo(str(difference))
        if result.skipped:
            typer.echo(f"not compared, since not measured: {'; '.join(result.skipped)}", err=True)
        if result.equal:
            typer.echo(f"{wanted.name}: as declared")
    raise typer.Exit(0 if result.equal else 1)


def _probed() -> Topology:
    """The machine we run on. Probing is the physical layer's, which stands above profiles: its command is asked.

    Raises:
        ProfileError: it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "here.yaml"
        command = [sys.executable, "-m", "physical", "probe", "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise ProfileError(f"this machine cannot be probed: {said[-1] if said else done.returncode}")
        return load_cluster(str(out))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"--svg: {path} cannot be written: {error.strerror}") from error


def _shelves() -> dict[Kind, Shelf[Any]]:
    catalogue = packaged()
    return {kind: getattr(catalogue, kind.value) for kind in Kind}


def _any_profile(name: str) -> Profile | Topology:
    """Whatever is called so; clusters come as topologies.

    Raises:
        ProfileError: nothing is.
    """
    if name.endswith((".yaml", ".yml")):
        profile = profile_file(Path(name))
        return load_cluster(name) if profile.kind == "cluster" else profile
    if "@" in name:
        return load_model(name)
    known: list[str] = []
    for kind, shelf in _shelves().items():
        known += shelf.spellings()
        if shelf.has(name):
            return load_cluster(name) if kind is Kind.CLUSTERS else shelf.get(name)
    hint = suggestion(name, known) or " (`profiles list` shows what there is)"
    raise ProfileError(f"no profile is called '{name}'{hint}")


def _plain(found: Profile | Topology) -> dict[str, Any]:
    """For JSON: the profile as its file says, with what is derived from it."""
    from hw_profiles.topology import Topology  # noqa: PLC0415 - networkx, not needed for --help

    profile = found.profile if isinstance(found, Topology) else found
    result: dict[str, Any] = {"kind": profile.kind, **profile.model_dump(by_alias=True, exclude_none=True)}
    if isinstance(profile, ModelSpec):
        for derived in ("parameters", "active_parameters", "weight_bytes", "kv_bytes_per_token"):
            result[derived] = getattr(profile, derived)
    if isinstance(found, Topology):
        result["devices"] = [
            {
                "id": device.id,
                "kind": device.kind,
                "node": device.node,
                "spot": device.spot,
                "usd_per_hour": device.usd_per_hour,
            }
            for device in found.devices.values()
        ]
        result["links"] = [{"between": [a, b], **data} for a, b, data in found.graph.edges(data=True)]
    return result
