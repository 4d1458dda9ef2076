"""`autopoiesis execution show`: a module's graph as a picture, as text or as JSON, before or after passes."""

from __future__ import annotations

import io
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from execution.graph.node import GraphError
from execution.graph.sources import SourceError, open_source

if TYPE_CHECKING:
    from execution.graph.capture import Capture
    from execution.graph.cost import Peaks
    from execution.graph.form import Graph

app = typer.Typer(no_args_is_help=True, help="Compute graphs.", add_completion=False)

Name = Annotated[
    str,
    typer.Argument(
        metavar="MODULE",
        help="package.module:attribute, a built-in model with a part (tiny-llama:layers.0.mlp), or multimodal.",
    ),
]


@app.command()
def show(
    module: Name,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="[NAME=]SHAPE[:DTYPE]",
            help="One input, like 4x256, ids=2x16:int64 or rowsx256 (a size that varies). Repeat for more.",
        ),
    ] = None,
    pipeline: Annotated[
        str, typer.Option(help="Passes to run first, like functionalise,cse,fuse_patterns,dce.")
    ] = "",
    out: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Where the picture goes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the graph as one JSON object.")] = False,
    as_text: Annotated[bool, typer.Option("--text", help="Print the graph as text.")] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure/--no-measure", help="Measure this machine's peaks for the shares of time."),
    ] = True,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Thread count of those peaks.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="For weights and inputs made here.")] = 0,
) -> None:
    """Capture a module and show its graph: operations, costs, live memory."""  # fmt: skip
    with _refusing():
        _check(out, as_json=as_json, as_text=as_text)
        passes = _pipeline(pipeline)
        captured = _captured(module, inputs or [], seed).transformed(passes)
        if not captured.parts:
            told = "; ".join(f"{item.name or 'the module'}: {item.reason}" for item in captured.refused[:3])
            raise SourceError(f"{module}: nothing of it can be captured: {told}")
        if as_json:
            typer.echo(json.dumps(_as_json(captured, pipeline)))
        elif as_text:
            _tell_text(captured)
        if out is not None or not (as_json or as_text):
            peaks = _peaks(threads, measure=measure)
            for path in _draw(captured, out or Path(f"{_file_name(module)}.svg"), peaks):
                typer.echo(f"drawn in {path}", err=as_json or as_text)
        if not as_json:
            _tell_refused(captured)


def _check(out: Path | None, *, as_json: bool, as_text: bool) -> None:
    if as_json and as_text:
        raise SourceError("--json and --text: choose one")
    if out is not None and out.suffix != ".svg":
        raise SourceError(f"--out {out}: pictures are SVG: end the name in .svg")
    if out is not None and not out.absolute().parent.is_dir():
        raise SourceError(f"--out {out}: there is no directory {out.absolute().parent}")


def _pipeline(text: str) -> Any:
    from execution.passes.pipeline import Pipeline, PipelineError  # noqa: PLC0415 help needs no passes

    try:
        return Pipeline.parse(text)
    except PipelineError as error:
        raise SourceError(f"--pipeline: {error}") from error


def _captured(name: str, inputs: list[str], seed: int) -> Capture:
    from execution.graph.capture import capture  # noqa: PLC0415 help needs no torch

    source = open_source(name, inputs, seed=seed)
    # The tracer tells its failures at length; `not captured` and errors say the same in one line.
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    with redirect_stderr(io.StringIO()):
        return capture(source.module, source.args, source.kwargs, dynamic=source.dynamic, name=name)


def _peaks(threads: int, *, measure: bool) -> Peaks:
    from execution.graph.draw import PLAUSIBLE  # noqa: PLC0415
    from execution.graph.roofline import machine_peaks  # noqa: PLC0415

    return machine_peaks(threads) if measure else PLAUSIBLE


def _draw(captured: Capture, out: Path, peaks: Peaks) -> Iterator[Path]:
    """One picture a part; parts of a model that is no single graph get its name into the file's."""
    from execution.graph.draw import svg_of  # noqa: PLC0415

    for part in captured.parts:
        path = out if captured.whole else out.with_name(f"{out.stem}.{_file_name(part.name)}.svg")
        _write(path, svg_of(part.graph, peaks))
        yield path


def _tell_text(captured: Capture) -> None:
    from execution.graph.text import text_of  # noqa: PLC0415

    for part in captured.parts:
        typer.echo(text_of(part.graph))


def _tell_refused(captured: Capture) -> None:
    for item in captured.refused:
        typer.echo(f"not captured: {item.name or 'the module as a whole'}: {item.reason}", err=True)


def _as_json(captured: Capture, pipeline: str) -> dict[str, Any]:
    return {
        "pipeline": pipeline,
        "parts": [{"name": part.name, **graph_json(part.graph)} for part in captured.parts],
        "refused": [{"name": item.name, "reason": item.reason} for item in captured.refused],
    }


def graph_json(graph: Graph) -> dict[str, Any]:
    """Nodes with costs, shapes and live bytes, and totals: what JSON can say of a graph."""
    from execution.graph.liveness import steps  # noqa: PLC0415
    from execution.graph.text import digest, value_text  # noqa: PLC0415

    told = {step.name: step for step in steps(graph)}
    total = graph.total_cost()
    return {
        "graph": graph.name,
        "digest": digest(graph),
        "symbols": [
            {"name": each.name, "least": each.least, "most": each.most, "example": each.example}
            for each in graph.symbols
        ],
        "flops": total.flops,
        "bytes_read": total.bytes_read,
        "bytes_written": total.bytes_written,
        "peak_bytes": max(step.live_bytes for step in told.values()),
        "nodes": [
            {
                "name": node.name,
                "kind": node.kind,
                "op": node.op,
                "takes": list(node.refs()),
                "value": value_text(node.value),
                "module": node.scope,
                "target": node.target,
                "views": list(node.views),
                "writes": list(node.writes),
                "effect": node.effect,
                "flops": graph.cost(node.name).flops,
                "bytes_read": graph.cost(node.name).bytes_read,
                "bytes_written": graph.cost(node.name).bytes_written,
                "live_bytes": told[node.name].live_bytes,
                "inner": [inner.op for inner in node.inner.calls] if node.inner is not None else None,
            }
            for node in graph
        ],
    }


def _file_name(name: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in name).strip("-.") or "graph"


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.absolute().parent, suffix=".part", delete=False, encoding="utf-8"
        ) as file:
            part = Path(file.name)
            file.write(text)
        part.chmod(0o644)
        part.replace(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def _refusing() -> Iterator[None]:
    """What is wrong with the input is one line on stderr and exit code 2; Ctrl-C is 130."""
    try:
        yield
    except (SourceError, GraphError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from error


if __name__ == "__main__":
    app()
