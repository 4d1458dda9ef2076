"""A recipe: how to make one variant of a module; and making it, from a graph to something that can be called.

Recipes are values: a pipeline string (execution.passes) and a back end. Built artifacts are files in a folder named by
the hash of all that went in, so that a restart, or another replica, finds them.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from execution.graph.form import Graph
from execution.graph.rebuild import rebuild
from execution.passes.pipeline import Pipeline
from execution.regimes.regime import Regime
from execution.regimes.store import opened

BackEnd = Literal["eager", "inductor"]
Run = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to make a variant."""

    name: str
    pipeline: str = ""
    """`{mix}` in it stands for the regime's mix."""
    back_end: BackEnd = "eager"

    def pipeline_for(self, regime: Regime) -> str:
        """The pipeline for one regime."""
        return self.pipeline.replace("{mix}", regime.mix)

    def __str__(self) -> str:
        return f"{self.name} ({self.pipeline or 'as captured'}; {self.back_end})"


@dataclass(frozen=True, slots=True)
class Built:
    """What a recipe gave; made in the builder's process, opened in the serving one."""

    recipe: Recipe
    regime: Regime
    folder: Path
    operations: int
    predicted_s: float
    """By the cost model."""
    worst_error: float
    """Largest |difference| / (atol + rtol * |reference|) on the examples: at most 1."""
    build_s: float
    cached: bool


class BuildError(RuntimeError):
    """A recipe cannot be built, or what it built is wrong; the message says which and why."""


PRUNED = "known_columns(columns='{mix}')"
STANDARD_RECIPES: tuple[Recipe, ...] = (
    Recipe("pruned", f"{PRUNED},memory_order(beam=4, states=100)"),
    Recipe("pruned and merged", f"{PRUNED},horizontal,memory_order(beam=4, states=100)"),
    Recipe("pruned, compiled", PRUNED, "inductor"),
    Recipe("pruned and merged, compiled", f"{PRUNED},horizontal", "inductor"),
)
"""For modules of the multi-modal kind; others give their own."""


def transformed(graph: Graph, recipe: Recipe, regime: Regime) -> Graph:
    """The graph after the recipe's pipeline."""
    return Pipeline.parse(recipe.pipeline_for(regime))(graph)


def artifact_key(graph: Graph, recipe: Recipe, threads: int) -> str:
    """sha256 of the graph's text, its tensors, the back end, its version, the thread count and the machine's kind."""
    told = hashlib.sha256()
    for part in (
        graph.nodes,
        recipe.back_end,
        torch.__version__,
        threads,
        torch.backends.cpu.get_cpu_capability(),
    ):
        told.update(repr(part).encode())
    for name, tensor in sorted(graph.tensors.items()):
        told.update(name.encode())
        if isinstance(tensor, Tensor):
            told.update(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


def module_key(module: nn.Module, threads: int) -> str:
    """sha256 of a module's class, its source, its weights, torch's version and the thread count."""
    told = hashlib.sha256()
    kind = type(module)
    try:
        source = inspect.getsource(inspect.getmodule(kind) or kind)
    except (OSError, TypeError):
        source = ""
    machine = torch.backends.cpu.get_cpu_capability()
    for part in (kind.__module__, kind.__qualname__, source, torch.__version__, threads, machine):
        told.update(repr(part).encode())
    for name, tensor in module.state_dict().items():
        told.update(name.encode())
        told.update(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


@dataclass(frozen=True, slots=True)
class Known:
    """A variant of another day, and an input of its regime on which it can be tried again."""

    built: Built
    example: tuple[Any, ...]
    """As numpy arrays, of the regime's sizes."""


def remember(built: Built, module: str, store: Path, example: Sequence[Tensor]) -> None:
    """Note what a proven recipe gave, for `find` and `known`."""
    place = _note(module, built.recipe, built.regime, store)
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_suffix(f".{os.getpid()}.part")
    plain = tuple(value.detach().cpu().numpy() for value in example)
    part.write_bytes(pickle.dumps(Known(replace(built, folder=Path(built.folder.name), cached=True), plain)))
    part.replace(place)


def find(recipe: Recipe, regime: Regime, module: str, store: Path) -> Built | None:
    """What this recipe gave for this module and regime on another day; None: never built, or its files are gone."""
    noted = _read_note(_note(module, recipe, regime, store), store)
    if noted is None or (noted.built.recipe, noted.built.regime) != (recipe, regime):
        return None
    return noted.built


def known(module: str, store: Path, recipes: Sequence[Recipe]) -> list[Known]:
    """All that these recipes gave for this module, those of the same regime together."""
    folder = _notes(module, store)
    notes = [_read_note(path, store) for path in sorted(folder.glob("*.pickle"))] if folder.is_dir() else []
    found = [note for note in notes if note is not None and note.built.recipe in recipes]
    return sorted(found, key=lambda note: (note.built.regime, recipes.index(note.built.recipe)))


def _read_note(path: Path, store: Path) -> Known | None:
    try:
        noted = pickle.loads(path.read_bytes())  # noqa: S301 written by `remember`
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ImportError):
        return None
    if not isinstance(noted, Known):
        return None
    built = replace(noted.built, folder=store / noted.built.folder.name)
    return replace(noted, built=built) if built.folder.is_dir() else None


def _notes(module: str, store: Path) -> Path:
    return store / "index" / module[:32]


def _note(module: str, recipe: Recipe, regime: Regime, store: Path) -> Path:
    told = hashlib.sha256(repr((module, recipe, regime)).encode()).hexdigest()
    return _notes(module, store) / f"{told}.pickle"


def write_artifact(graph: Graph, recipe: Recipe, example: Sequence[Tensor], folder: Path) -> None:
    """Build into a folder of its own, then move it into place: readers see all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        if recipe.back_end == "eager":
            _write_graph(graph, made / "graph.pickle")
        else:
            _write_package(graph, example, made / "package.pt2")
            _library(made / "package.pt2")
        os.replace(made, folder)  # noqa: PTH105 Path.replace says the same of files only
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def open_artifact(built: Built, weights: Mapping[str, Any]) -> Run:
    """What can be called with the regime's inputs. `weights`: the original's, shared by name. Raises BuildError."""
    opened(built.folder)
    try:
        if built.recipe.back_end == "eager":
            return rebuild(_read_graph(built.folder / "graph.pickle", weights))
        return _PackageRun(built.folder / "package.pt2")
    except (OSError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise BuildError(
            f"{built.recipe.name} in {built.folder.name[:12]}: cannot be opened: {error}"
        ) from error


class _PackageRun:
    """A compiled package; its answer as a flat tuple, like the module's.

    Loaded straight from its shared library: torch's public function unpacks the package anew each time and imports the
    whole compiler first (tens of milliseconds and ten seconds in which no other thread of this process runs).
    """

    def __init__(self, path: Path) -> None:
        self._run = torch._C._aoti.AOTIModelContainerRunnerCpu(str(_library(path)), 1).run

    def __call__(self, *inputs: Tensor) -> Any:
        return tuple(self._run(list(inputs)))


def _library(package: Path) -> Path:
    """The shared library of a package, unpacked beside it once. Raises OSError."""
    library = package.with_suffix(".so")
    if library.is_file():
        return library
    part = library.with_suffix(f".{os.getpid()}.part")
    try:
        with zipfile.ZipFile(package) as packed:
            names = [name for name in packed.namelist() if name.endswith(".so")]
            if len(names) != 1:
                raise OSError(f"{package}: holds {len(names)} shared libraries, not one")
            with packed.open(names[0]) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        part.replace(library)
    except zipfile.BadZipFile as error:
        raise OSError(f"{package}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return library


def _write_graph(graph: Graph, path: Path) -> None:
    own = {name: value for name, value in graph.tensors.items() if not isinstance(value, nn.Parameter)}
    path.write_bytes(pickle.dumps((graph.name, graph.nodes, graph.signature, own)))


def _read_graph(path: Path, weights: Mapping[str, Any]) -> Graph:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # torch's tree specs restore themselves by an older name
        name, nodes, signature, own = pickle.loads(path.read_bytes())  # noqa: S301 written by our own builder
    graph = Graph(name, nodes, tensors={**own, **weights})
    graph._signature = signature
    return graph


def _write_package(graph: Graph, example: Sequence[Tensor], path: Path) -> None:
    """Ahead of time by inductor, weights frozen into it."""
    with torch.no_grad():
        program = torch.export.export(rebuild(graph), tuple(example))
        configs = {"freezing": True, "aot_inductor.compile_wrapper_opt_level": "O1"}
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
