"""Helix's .ini files: a cluster's machines and links, stored layouts; and its tables of measured times."""

from __future__ import annotations

import ast
import configparser
import csv
import gzip
import operator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import BenchmarkInputError

UNITS = {
    "bps": 1.0,
    "kbps": 1e3,
    "mbps": 1e6,
    "gbps": 1e9,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "MilliSec": 1e-3,
    "Sec": 1.0,
}
_OPERATORS = {ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Add: operator.add, ast.Sub: operator.sub}


@dataclass(frozen=True)
class Cluster:
    """What a cluster file says."""

    path: Path
    kinds: tuple[str, ...]
    """Kind of each compute node."""
    links: dict[tuple[str, str], float]
    """(from, to) -> bandwidth as written; ends are node numbers, `source` and `sink`."""
    latency_s: dict[tuple[str, str], float]


@dataclass(frozen=True)
class Saturated:
    """What a machine's tables say of one layer at their largest batches."""

    model: str
    kind: str
    prompt_tokens_per_s: float
    decode_tokens_per_s: float


def read_text(path: Path) -> str:
    """A text file, gzipped or not. Raises BenchmarkInputError."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return file.read()
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise BenchmarkInputError(f"helix: cannot read {path}: {error}") from error


def read_cluster(path: Path) -> Cluster:
    """A cluster file: sections NodeNames, ComputeNode-N, Link-A-B. Raises BenchmarkInputError."""
    ini = _ini(path)
    try:
        count = ini.getint("NodeNames", "total_compute_nodes")
        kinds = tuple(ini.get(f"ComputeNode-{i}", "type").strip() for i in range(count))
        links, latency_s = {}, {}
        for section in ini.sections():
            if section.startswith("Link-"):
                _, a, b = section.split("-", 2)
                links[a, b] = quantity(ini.get(section, "bandwidth"), path)
                latency_s[a, b] = quantity(ini.get(section, "latency"), path)
                if "source" not in {a, b} and "sink" not in {a, b}:  # written once for both directions
                    links.setdefault((b, a), links[a, b])
                    latency_s.setdefault((b, a), latency_s[a, b])
    except (configparser.Error, ValueError) as error:
        raise BenchmarkInputError(f"helix: {path} is no cluster file: {error}") from error
    return Cluster(path, kinds, links, latency_s)


def is_cluster(path: Path) -> bool:
    """Whether a file looks like a cluster file."""
    return "[NodeNames]" in read_text(path) and "total_compute_nodes" in read_text(path)


def read_layout(path: Path) -> dict[int, list[int]]:
    """Node number -> layers, of a stored layout (Settings.offset, Solution.compute_node_N)."""
    ini = _ini(path)
    try:
        offset = ini.getint("Settings", "offset")
        return {
            int(key.rpartition("_")[2]) - offset: [int(layer) for layer in ast.literal_eval(value)]
            for key, value in ini.items("Solution")
        }
    except (configparser.Error, ValueError, SyntaxError) as error:
        raise BenchmarkInputError(f"helix: {path} is no layout: {error}") from error


def read_tables(root: Path) -> list[Saturated]:
    """All MODEL/KIND/{prompt,decode}_bs2time.csv below a directory: batch (tokens), milliseconds for one layer."""
    found = []
    for prompt in sorted(root.glob("**/prompt_bs2time.csv*")):
        decode = next(iter(sorted(prompt.parent.glob("decode_bs2time.csv*"))), None)
        if decode is None:
            raise BenchmarkInputError(f"helix: {prompt.parent} has no decode_bs2time.csv beside the prompts'")
        kind, model = prompt.parent.name, prompt.parent.parent.name
        found.append(Saturated(model, kind, _saturated(prompt), _saturated(decode)))
    return found


def quantity(text: str, path: Path) -> float:
    """`1000 * mbps` -> 1e9: numbers, units and the four operations. Raises BenchmarkInputError."""

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return float(node.value)
        if isinstance(node, ast.Name) and node.id in UNITS:
            return UNITS[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return float(_OPERATORS[type(node.op)](value(node.left), value(node.right)))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        raise BenchmarkInputError(f"helix: {path}: cannot read the quantity {text!r}")

    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ZeroDivisionError) as error:
        raise BenchmarkInputError(f"helix: {path}: cannot read the quantity {text!r}") from error


def _saturated(path: Path) -> float:
    try:
        rows = [(float(a), float(b)) for a, b in csv.reader(read_text(path).splitlines())]
    except ValueError as error:
        raise BenchmarkInputError(f"helix: {path} is no table of batch and time: {error}") from error
    rates = [1000.0 * batch / time_ms for batch, time_ms in rows if time_ms > 0.0]
    if not rates:
        raise BenchmarkInputError(f"helix: {path} has no rows with a time")
    return max(rates)


def _ini(path: Path) -> configparser.ConfigParser:
    ini = configparser.ConfigParser(interpolation=None)
    try:
        ini.read_string(read_text(path))
    except configparser.Error as error:
        raise BenchmarkInputError(f"helix: {path}: {error}") from error
    return ini
