"""Finds profiles by name, alias or path, and puts clusters together from them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from hw_profiles.errors import Problem, ProfileError
from hw_profiles.profile import Profile
from hw_profiles.schema import (
    BYTES_PER_WEIGHT,
    ClusterProfile,
    DeviceProfile,
    LinkProfile,
    ModelSpec,
    NodeProfile,
)
from hw_profiles.yamlfile import Document, suggestion, validated

if TYPE_CHECKING:
    from hw_profiles.topology import Topology

PACKAGED = Path(__file__).parent / "data"
FOLDERS: dict[str, type[Profile]] = {
    "devices": DeviceProfile,
    "links": LinkProfile,
    "nodes": NodeProfile,
    "clusters": ClusterProfile,
    "models": ModelSpec,
}

P = TypeVar("P", bound=Profile)


def shown(path: Path) -> str:
    """How a file is called in messages: packaged ones from `hw_profiles/` on, others as given."""
    if path.is_relative_to(PACKAGED):
        return path.relative_to(PACKAGED.parent.parent).as_posix()
    return str(path)


class Shelf(Generic[P]):
    """All profiles of one kind: the packaged ones, and those in the folders of a user, which come first."""

    def __init__(self, folder: str, schema: type[P], roots: tuple[Path, ...]) -> None:
        self.folder = folder
        self.noun = folder.removesuffix("s")
        self.schema = schema
        self.roots = roots
        self._loaded: dict[Path, tuple[P, Document]] = {}

    def files(self) -> Iterator[Path]:
        """Every file, by name; a user's file hides the packaged one of the same name."""
        found: dict[str, Path] = {}
        for root in self.roots:
            for path in (root / self.folder).glob("*.yaml"):
                found.setdefault(path.stem, path)
        return iter(found[stem] for stem in sorted(found))

    def load(self, path: Path) -> tuple[P, Document]:
        """Read and validate one file."""
        if path not in self._loaded:
            document = Document(path, shown(path))
            profile = validated(document, self.schema)
            if profile.name != path.stem:
                message = f"name '{profile.name}' differs from the file name '{path.stem}'"
                raise ProfileError([document.problem(("name",), message)])
            self._loaded[path] = (profile, document)
        return self._loaded[path]

    def find(self, name: str) -> tuple[P, Document]:
        """A profile and its file, by name or alias, upper or lower case.

        Raises:
            ProfileError: there is none; the message names the nearest one.
        """
        wanted = name.strip().lower()
        for root in self.roots:
            path = root / self.folder / f"{wanted}.yaml"
            if wanted and "/" not in wanted and path.is_file():
                return self.load(path)
        entries = [self.load(path) for path in self.files()]
        for profile, document in entries:
            if wanted in {alias.lower() for alias in profile.aliases}:
                return profile, document
        known = [profile.name for profile, _ in entries]
        hint = suggestion(wanted, self.spellings()) or f" (known: {', '.join(known)})"
        raise ProfileError(f"unknown {self.noun} '{name}'{hint}")

    def get(self, name: str) -> P:
        """`find`, the profile only."""
        return self.find(name)[0]

    def has(self, name: str) -> bool:
        """Is something called so?"""
        wanted = name.strip().lower()
        return wanted in self.names() or any(
            wanted in {alias.lower() for alias in profile.aliases} for profile in self.all()
        )

    def spellings(self) -> list[str]:
        """Names, then aliases."""
        return self.names() + [alias for profile in self.all() for alias in profile.aliases]

    def all(self) -> list[P]:
        """Every profile, by name."""
        return [self.load(path)[0] for path in self.files()]

    def names(self) -> list[str]:
        """Sorted, aliases not listed."""
        return [path.stem for path in self.files()]


class Catalogue:
    """The shelves of all five kinds over the same folders. Profiles are read once and kept."""

    def __init__(self, *roots: Path) -> None:
        every = (*roots, PACKAGED)
        self.devices = Shelf("devices", DeviceProfile, every)
        self.links = Shelf("links", LinkProfile, every)
        self.nodes = Shelf("nodes", NodeProfile, every)
        self.clusters = Shelf("clusters", ClusterProfile, every)
        self.models = Shelf("models", ModelSpec, every)

    def files(self) -> list[Path]:
        """Every profile file, in the order in which the kinds build on each other."""
        shelves = (self.devices, self.links, self.nodes, self.clusters, self.models)
        return [path for shelf in shelves for path in shelf.files()]


@functools.cache
def packaged() -> Catalogue:
    """What comes with the package."""
    return Catalogue()


def load_device(name: str) -> DeviceProfile:
    """A device profile by name, alias, or path to a YAML file.

    Raises:
        ProfileError: unknown, unreadable or wrong.
    """
    return _by_name_or_path(packaged().devices, name)


def load_model(name: str) -> ModelSpec:
    """A model spec by name, alias (e.g. its Hugging Face repository) or path to a YAML file; `@fp8` (any
    weight type) behind it gives the same model with its weights stored so.

    Raises:
        ProfileError: unknown, unreadable or wrong.
    """
    base, dtype = _without_dtype(name)
    model = _by_name_or_path(packaged().models, base)
    if dtype is None:
        return model
    for known in BYTES_PER_WEIGHT:
        if known == dtype.lower():
            return model.with_weights(known)  # type: ignore[arg-type]
    raise ProfileError(f"unknown weight type '{dtype}' in '{name}' (known: {', '.join(BYTES_PER_WEIGHT)})")


def load_cluster(name: str) -> Topology:
    """A cluster by name, or by path to a YAML file. A user's file finds devices, links and nodes of its own
    in the folders `devices/`, `links/`, `nodes/` beside it (or beside its folder `clusters/`), and the
    packaged ones.

    Raises:
        ProfileError: unknown, unreadable or wrong, or it refers to something that is.
    """
    path = _as_path(name)
    return _packaged_cluster(name) if path is None else _cluster_file(path)


@functools.lru_cache(maxsize=32)
def _packaged_cluster(name: str) -> Topology:
    from hw_profiles.assembly import assemble  # noqa: PLC0415 - pulls networkx, which models do not need

    profile, document = packaged().clusters.find(name)
    return assemble(profile, packaged(), document)


def _cluster_file(path: Path) -> Topology:
    from hw_profiles.assembly import assemble  # noqa: PLC0415 - pulls networkx, which models do not need

    document = Document(path, shown(path))
    profile = validated(document, ClusterProfile)
    root = path.parent.parent if path.parent.name == "clusters" else path.parent
    return assemble(profile, Catalogue(root), document)


def anchored(name: str) -> str:
    """The name of a cluster or a model as any process understands it: a path is made absolute, a name is left as it
    is, a weight type stays behind it."""
    base, dtype = _without_dtype(name)
    path = _as_path(base)
    return name if path is None else f"{path.absolute()}{'' if dtype is None else f'@{dtype}'}"


def list_devices() -> list[str]:
    """Names of the packaged devices."""
    return packaged().devices.names()


def list_clusters() -> list[str]:
    """Names of the packaged clusters."""
    return packaged().clusters.names()


def list_models() -> list[str]:
    """Names of the packaged models."""
    return packaged().models.names()


def _as_path(name: str) -> Path | None:
    """The file that is meant, when a file is meant."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    return None


def _without_dtype(name: str) -> tuple[str, str | None]:
    """(name or path, weight type): what follows the last `@`, unless that stands in the name of a folder or file."""
    base, mark, dtype = name.rpartition("@")
    return (name, None) if not mark or "/" in dtype or _as_path(dtype) else (base, dtype)


def _by_name_or_path(shelf: Shelf[P], name: str) -> P:
    path = _as_path(name)
    if path is None:
        return shelf.get(name)
    return validated(Document(path, shown(path)), shelf.schema)


def profile_file(path: Path) -> Profile:
    """The profile in a file, of whichever kind: its folder's, or, elsewhere, the one that its keys fit best.

    Raises:
        ProfileError: unreadable or wrong, references included.
    """
    document = Document(path, shown(path))
    profile = validated(document, FOLDERS.get(path.parent.name) or _likely_schema(document))
    _check_references(profile, path, document)
    return profile


def problems_in(path: Path) -> list[Problem]:
    """Everything that is wrong with one profile file."""
    try:
        profile_file(path)
    except ProfileError as error:
        return list(error.problems)
    return []


def _likely_schema(document: Document) -> type[Profile]:
    def overlap(schema: type[Profile]) -> int:
        keys = {field.alias or name for name, field in schema.model_fields.items()}
        return len(keys & document.value.keys())

    return max(FOLDERS.values(), key=overlap)


def _check_references(profile: Profile, path: Path, document: Document) -> None:
    """Build what can be built, so that missing references are found."""
    from hw_profiles.assembly import assemble, check_node  # noqa: PLC0415 - pulls networkx

    root = path.parent.parent if path.parent.name in FOLDERS else path.parent
    catalogue = packaged() if root == PACKAGED else Catalogue(root)
    if isinstance(profile, ClusterProfile):
        assemble(profile, catalogue, document)
    elif isinstance(profile, NodeProfile):
        check_node(profile, catalogue, document)
    if path.parent.name in FOLDERS and profile.name != path.stem:
        message = f"name '{profile.name}' differs from the file name '{path.stem}'"
        raise ProfileError([document.problem(("name",), message)])
