"""`autopoiesis execution profile|tune|bench|cache|explain|watch`: hot paths and what became of them."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from execution.compiler.cache import ArtifactCache

app = typer.Typer(help="Make what is hot faster, and see why.", no_args_is_help=True)
cache_app = typer.Typer(help="Compiled artifacts on this machine.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
console, errors = Console(), Console(stderr=True)

Target = Annotated[
    str, typer.Argument(help="a model (name or directory), or a module: package.module:attribute")
]
Threads = Annotated[int, typer.Option(min=1, max=256, help="threads of arithmetic")]
Streams = Annotated[int, typer.Option(min=1, max=1024, help="requests at once")]
Seconds = Annotated[float, typer.Option(min=0.1, help="seconds of load")]
CacheDir = Annotated[
    Path | None, typer.Option("--cache-dir", help="folder of artifacts (default: the user's own)")
]
JournalFile = Annotated[
    Path | None, typer.Option("--journal", help="journal file (default: beside the artifacts)")
]
Shape = Annotated[str, typer.Option("--input", help="of a module's input, as 8x256 (the first is the rows)")]
AsJson = Annotated[bool, typer.Option("--json", help="plain JSON on stdout")]


@app.command()
def profile(
    target: Target = "tiny-llama",
    streams: Streams = 4,
    threads: Threads = 1,
    seconds: Seconds = 5.0,
    top: Annotated[int, typer.Option(min=1, help="lines")] = 15,
    shape: Shape = "8x256",
    as_json: AsJson = False,
) -> None:
    """Run a load, and rank hot paths by the time that could be won."""
    _check_target(target)
    from execution.live import runs  # noqa: PLC0415 torch takes a second, many on a busy machine

    with _reported():
        if ":" in target:
            lines = runs.profile_module(target, _sizes(shape), threads, seconds)
        else:
            lines = runs.profile_model(target, streams, threads, seconds)
    if as_json:
        typer.echo(json.dumps(lines[:top]))
        return
    table = _table(
        f"{target}, {threads} thread{'s' * (threads > 1)}: time that could be won",
        ("unit", "rows", "calls", "spent ms", "floor ms", "could win ms", "share"),
    )
    for line in lines[:top]:
        table.add_row(
            line["unit"], _range(line["rows"]), f"{line['calls']:.0f}", f"{1e3 * line['spent_s']:.1f}",
            f"{1e3 * line['floor_s']:.1f}", f"{1e3 * line['could_win_s']:.1f}", f"{100 * line['share']:.0f} %",
        )  # fmt: skip
    console.print(table)


@app.command()
def tune(
    target: Target = "tiny-llama",
    streams: Streams = 4,
    threads: Threads = 1,
    int8: Annotated[bool, typer.Option("--int8", help="int8 weights: changes answers a little")] = False,
    limit_s: Annotated[float, typer.Option(min=1.0, help="seconds at most")] = 300.0,
    shape: Shape = "8x256",
    cache_dir: CacheDir = None,
) -> None:
    """Compile, prove and keep what is faster; what is finished stays, so that it can be broken off and resumed."""
    _check_target(target)
    from execution.live import runs  # noqa: PLC0415

    with _reported():
        if ":" in target:
            outcome = runs.tune_module(target, _sizes(shape), threads, limit_s, cache_dir, errors)
        else:
            outcome = runs.tune_model(target, streams, threads, limit_s, cache_dir, errors, int8=int8)
    for line in outcome:
        console.print(line, highlight=False)


@app.command()
def bench(
    target: Target = "tiny-llama",
    streams: Streams = 4,
    threads: Threads = 1,
    rounds: Annotated[int, typer.Option(min=1, max=100)] = 5,
    int8: Annotated[bool, typer.Option("--int8")] = False,
    shape: Shape = "8x256",
    cache_dir: CacheDir = None,
    as_json: AsJson = False,
) -> None:
    """What the artifacts at hand are worth: blocks with and without them, in turn."""
    _check_target(target)
    from execution.live import runs  # noqa: PLC0415

    with _reported():
        if ":" in target:
            found = runs.bench_module(target, _sizes(shape), threads, rounds, cache_dir)
        else:
            found = runs.bench_model(target, streams, threads, rounds, cache_dir, int8=int8)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for name, value in found.items():
        console.print(
            f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}", highlight=False
        )


@app.command()
def explain(
    unit: Annotated[str, typer.Argument(help="part of a unit's or variant's name; empty: everything")] = "",
    journal: JournalFile = None,
    source: Annotated[
        bool, typer.Option("--source", help="print the generated source of what is in the cache")
    ] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Why a variant was chosen or refused, with figures."""
    from execution.live.explain import explained  # noqa: PLC0415

    path = journal or _root(cache_dir) / "journal.jsonl"
    with _reported():
        lines = list(explained(_entries(path), unit))
        if not lines:
            _fail(f"{path}: nothing about {unit or 'anything'}")
        for line in lines:
            console.print(line, highlight=False, markup=False)
        if source:
            cache = _cache(cache_dir)
            for key, _, _, meta in cache.entries():
                if unit in {"", meta.get("op"), "decode"} or unit in str(meta.get("recipe")):
                    _print_source(cache, key)


@app.command()
def watch(
    journal: JournalFile = None,
    cache_dir: CacheDir = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="stop after so many; 0: never")] = 0.0,
) -> None:
    """What is hot, compiling and in force, live, from the journal of a serving process."""
    from execution.live.explain import state_of  # noqa: PLC0415

    path = journal or _root(cache_dir) / "journal.jsonl"
    until_s = time.monotonic() + seconds if seconds else float("inf")
    with _reported(), Live(console=console, refresh_per_second=4) as live:
        while True:
            state = state_of(_entries(path))
            table = _table(f"{path}: {state['state']}", ("unit", "variant", "stage", "figures"))
            for row in state["rows"]:
                table.add_row(*row)
            live.update(table)
            if time.monotonic() >= until_s:
                return
            time.sleep(min(0.5, max(0.0, until_s - time.monotonic())))


@cache_app.command("ls")
def cache_ls(cache_dir: CacheDir = None, as_json: AsJson = False) -> None:
    """List artifacts, the longest unused first."""
    with _reported():
        cache = _cache(cache_dir)
        found = cache.entries()
        verdicts = {key: cache.verdict(key) for key, *_ in found}
    if as_json:
        typer.echo(json.dumps([{"key": k, "bytes": b, "used": u, **dict(m)} for k, b, u, m in found]))
        return
    table = _table(f"{cache.root}: {len(found)} artifacts, {cache.total_bytes():,} bytes",
                   ("key", "op", "backend", "recipe", "rows", "bytes", "used", "verdict"))  # fmt: skip
    for key, size, used_s, meta in found:
        verdict = verdicts[key]
        recipe = meta.get("recipe")
        short = dict(meta) | dict(recipe if isinstance(recipe, dict) else {}) | {"key": key}
        short["recipe"] = short.get("name", recipe) if isinstance(recipe, dict) else recipe
        told = "none" if verdict is None else "accepted" if verdict.ok else f"refused: {verdict.stage}"
        table.add_row(
            key[:12], *(str(short.get(name, "")) for name in ("op", "backend", "recipe", "bucket")), f"{size:,}",
            datetime.fromtimestamp(used_s).strftime("%Y-%m-%d %H:%M"), told,
        )  # fmt: skip
    console.print(table)


@cache_app.command("show")
def cache_show(key: str, cache_dir: CacheDir = None) -> None:
    """All that is known of one artifact, by the beginning of its key."""
    with _reported():
        cache = _cache(cache_dir)
        whole, meta = _find(cache, key)
        console.print_json(json.dumps({"key": whole, **dict(meta)}, default=str))
        verdict = cache.verdict(whole)
        console.print(
            verdict.explain() if verdict is not None else "no verdict", highlight=False, markup=False
        )
        _print_source(cache, whole)


@cache_app.command("rm")
def cache_rm(
    keys: Annotated[list[str] | None, typer.Argument(help="beginnings of keys")] = None,
    everything: Annotated[bool, typer.Option("--all", help="all that is not in use")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Throw artifacts out; those in use stay."""
    with _reported():
        cache = _cache(cache_dir)
        if everything:
            console.print(f"{cache.clear()} artifacts thrown out")
            return
        if not keys:
            _fail("cache rm: name a key, or --all")
        for key in keys:
            whole, _ = _find(cache, key)
            console.print(f"{whole[:12]}: {'thrown out' if cache.remove(whole) else 'in use: it stays'}")


@cache_app.command("verify")
def cache_verify(cache_dir: CacheDir = None) -> None:
    """Check every artifact against its checksums; damaged ones are removed. Exit code 1 when there were some."""
    with _reported():
        cache = _cache(cache_dir)
        found = cache.entries()
        bad = 0
        for key, *_ in found:
            entry = cache.get(key)
            if entry is None:
                bad += 1
                console.print(f"{key[:12]}: damaged, removed")
            else:
                entry.close()
        console.print(f"{len(found) - bad} of {len(found)} artifacts are whole")
    if bad:
        raise typer.Exit(1)


# ---- Details ----


class _reported:  # noqa: N801 reads like a function
    """Errors of the user's making become one line and exit code 2; Ctrl-C becomes 130."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            errors.print("broken off: what was finished is kept")
            raise typer.Exit(130) from None
        if isinstance(error, typer.Exit) or error is None or not isinstance(error, Exception):
            return
        from execution.compiler.cache import CacheError  # noqa: PLC0415
        from execution.compiler.port import CompileError  # noqa: PLC0415
        from execution.graph.node import GraphError  # noqa: PLC0415
        from loop.contracts.engine import EngineError  # noqa: PLC0415

        if isinstance(error, CacheError | CompileError | GraphError | EngineError | OSError | ValueError):
            _fail(str(error))


def _check_target(target: str) -> None:
    """What is wrong at first sight is told before anything slow is imported."""
    if ":" not in target:
        from execution.engines.models import model_directory  # noqa: PLC0415

        with _reported():
            model_directory(target, 0)
        return
    place, _, attribute = target.partition(":")
    try:
        missing = (
            importlib.util.find_spec(place) is None
        )  # imports the packages around it, but not the module
    except (ImportError, ValueError) as error:
        _fail(f"{target}: cannot be imported: {error}")
    if missing:
        _fail(f"{target}: cannot be imported: no module named {place!r}")
    if not attribute.isidentifier():
        _fail(f"{target}: package.module:attribute is expected, as in torch.nn:Identity")


def _fail(message: str) -> NoReturn:
    errors.print(f"error: {message}", highlight=False, markup=False, emoji=False, soft_wrap=True)
    raise typer.Exit(2)


def _root(cache_dir: Path | None) -> Path:
    from execution.compiler.cache import default_root  # noqa: PLC0415

    return cache_dir or default_root()


def _cache(cache_dir: Path | None) -> ArtifactCache:
    from execution.compiler.cache import ArtifactCache  # noqa: PLC0415

    return ArtifactCache(_root(cache_dir))


def _find(cache: ArtifactCache, beginning: str) -> tuple[str, Any]:
    found = [(key, meta) for key, _, _, meta in cache.entries() if key.startswith(beginning)]
    if len(found) != 1:
        _fail(f"{cache.root}: {len(found)} artifacts begin with {beginning!r}: `cache ls` lists them")
    return found[0]


def _print_source(cache: ArtifactCache, key: str) -> None:
    entry = cache.get(key)
    if entry is None:
        return
    with entry:
        for path in sorted(entry.folder.rglob("*")):
            if path.suffix in {".cpp", ".c", ".py", ".txt", ".json", ".cu"} and path.stat().st_size < 1 << 20:
                console.rule(f"{key[:12]}: {path.relative_to(entry.folder)}")
                console.print(
                    path.read_text(encoding="utf-8", errors="replace"), highlight=False, markup=False
                )


def _entries(path: Path) -> list[dict[str, Any]]:
    from execution.live.journal import read_journal  # noqa: PLC0415

    if not path.is_file():
        _fail(f"{path}: no such journal: serve with evolve_execution=true, or run `tune` first")
    return list(read_journal(path))


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        _fail(f"--input {text!r}: sizes like 8x256 are expected")
    return sizes


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _range(rows: list[int]) -> str:
    return str(rows[0]) if rows[0] == rows[1] else f"{rows[0]}-{rows[1]}"


if __name__ == "__main__":
    app()
