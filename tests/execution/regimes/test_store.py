"""The folder of artifacts is bounded, and what is thrown out is built again."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from execution.regimes.builder import Site, build
from execution.regimes.recipe import BuildError, Recipe, find, known, module_key, open_artifact
from execution.regimes.regime import Regime
from execution.regimes.store import bytes_of, make_room, opened


def _artifact(store: Path, name: str, size: int, used_s: float) -> Path:
    folder = store / name
    folder.mkdir(parents=True)
    (folder / "graph.pickle").write_bytes(b"x" * size)
    os.utime(folder, (used_s, used_s))
    return folder


def test_the_longest_unused_make_room(tmp_path: Path) -> None:
    old, used, new = (
        _artifact(tmp_path, name, 100, at) for name, at in (("a", 1e9), ("b", 2e9), ("c", 1.5e9))
    )
    opened(used)
    assert make_room(tmp_path, 300, keep=new) == []
    assert make_room(tmp_path, 250, keep=new) == [old]
    assert make_room(tmp_path, 50, keep=new) == [used]
    assert new.is_dir()
    assert bytes_of(tmp_path) == 100
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_what_is_opened_was_used(tmp_path: Path) -> None:
    first, second = (_artifact(tmp_path, name, 100, at) for name, at in (("a", 1e9), ("b", 1.5e9)))
    opened(first)
    assert make_room(tmp_path, 100, keep=tmp_path / "none") == [second]


def test_half_written_artifacts_of_dead_processes_go_too(tmp_path: Path) -> None:
    kept = _artifact(tmp_path, "a", 100, 1e9)
    dead = _artifact(tmp_path, ".building-dead", 100, 1e9)
    busy = tmp_path / ".building-busy"
    busy.mkdir()
    make_room(tmp_path, 10, keep=tmp_path / "none")
    assert not kept.exists()
    assert not dead.exists()
    assert busy.is_dir()


class Sum(nn.Module):
    def forward(self, x: torch.Tensor, present: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x.sum(1) * present[:, 0],)


def test_builds_keep_to_the_bound(tmp_path: Path) -> None:
    model, recipe = Sum(), Recipe("as it is")
    site = Site(tmp_path, max_bytes=1)
    made = []
    for rows in (1, 2, 4):
        example = (torch.ones(rows, 3), torch.ones(rows, 1, dtype=torch.bool))
        made.append(build(model, recipe, Regime(rows, 0, "1"), [example], site))
    assert [built.folder.is_dir() for built in made] == [False, False, True]
    key = module_key(model, site.threads)
    assert find(recipe, Regime(1, 0, "1"), key, tmp_path) is None
    assert [each.built.regime.rows for each in known(key, tmp_path, [recipe])] == [4]
    with pytest.raises(BuildError, match="cannot be opened"):
        open_artifact(made[0], {})
