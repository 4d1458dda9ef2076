"""ServeGen client directories: per-client rates, burstiness and length distributions, turned into requests.

`chunk-N-trace.csv` has rows t_s,rate_per_s,cv,pattern,arg1,arg2, one per 600 s; `chunk-N-dataset.json` maps
the start of each 6 h to PDFs of input and output tokens, written as Python literals. Each client is a renewal
process (Gamma or Weibull, by its pattern) with the CV of each window; inputs and outputs are drawn
independently, since the files hold only their margins.
Source: Xiang et al. 2025, "ServeGen"; the data are Apache-2.0.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from execution.workload.arrivals import Family, counted_times
from execution.workload.errors import WorkloadError
from execution.workload.rows import MAX_TOKENS, csv_fields, json_object, lines, number
from loop.contracts import Request, Workload

WINDOW_S = 600.0
PDF_S = 21600.0
DEFAULT_DURATION_S = 3600.0
MAX_REQUESTS = 20_000_000
_TRACE = re.compile(r"chunk-(\d{1,9})-trace\.csv", re.ASCII)
_PDF = re.compile(r"\{[\d\s.:,eE+\-]*\}", re.ASCII)
_MAX_PDF_CHARS = 16 * 2**20
_COLUMNS = 6


@dataclass(frozen=True, slots=True)
class RateWindow:
    """What one client does in one window of 600 s."""

    start_s: float
    rate_per_s: float
    cv: float
    family: Family


@dataclass(frozen=True, slots=True)
class Pdf:
    """A discrete distribution of token counts."""

    values: NDArray[np.int64]
    cumulative: NDArray[np.float64]

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Draw `count` values."""
        index = np.searchsorted(self.cumulative, rng.random(count), side="right")
        return self.values[np.minimum(index, len(self.values) - 1)]


class Client:
    """One client of a ServeGen directory; PDFs are parsed when they are first asked for."""

    def __init__(self, trace: Path, number_: int) -> None:
        self.number = number_
        self.windows = list(_windows(trace))
        self._dataset = trace.with_name(f"chunk-{number_}-dataset.json")
        self._raw = _dataset(self._dataset)
        self._parsed: dict[str, tuple[Pdf, Pdf] | None] = {}

    def lengths(self, at_s: float) -> tuple[Pdf, Pdf]:
        """(input, output) distributions at a time: those of its 6 h, or the nearest that are not empty."""
        for key in sorted(self._raw, key=lambda start: (abs(float(start) + PDF_S / 2 - at_s), float(start))):
            if key not in self._parsed:
                self._parsed[key] = self._parse(key)
            pair = self._parsed[key]
            if pair is not None:
                return pair
        raise WorkloadError(f"{self._dataset}: no window has both input and output lengths")

    def _parse(self, key: str) -> tuple[Pdf, Pdf] | None:
        entry = self._raw[key]
        pdfs = [parse_pdf(f"{self._dataset}: {key}.{side}", entry.get(side)) for side in _SIDES]
        return None if pdfs[0] is None or pdfs[1] is None else (pdfs[0], pdfs[1])


_SIDES = ("input_tokens", "output_tokens")


def clients(path: str | Path) -> list[Client]:
    """The clients of a directory, by number. Raises WorkloadError when there are none."""
    path = Path(path)
    try:
        found = [(int(match[1]), file) for file in path.iterdir() if (match := _TRACE.fullmatch(file.name))]
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror}") from error
    if not found:
        raise WorkloadError(f"{path}: holds no chunk-N-trace.csv: this is no ServeGen directory")
    return [Client(file, index) for index, file in sorted(found)]


def read(
    path: str | Path,
    *,
    model: str,
    name: str | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
    rate_scale: float = 1.0,
    seed: int = 0,
) -> Workload:
    """Requests of all clients of a directory in [start_s, start_s + duration_s), times from 0.

    `duration_s` None is one hour (a directory may hold two weeks at 200 requests/s). The requests of a window
    depend on `seed` and on the window alone, not on where the cut begins. `rate_scale` multiplies the rates.

    Raises:
        WorkloadError: with file and line, for malformed files, an interval without requests, or too many.
    """
    path = Path(path)
    duration_s = DEFAULT_DURATION_S if duration_s is None else duration_s
    _check_interval(start_s, duration_s, rate_scale)
    end_s = start_s + duration_s
    arrivals: list[NDArray[np.float64]] = []
    inputs: list[NDArray[np.int64]] = []
    outputs: list[NDArray[np.int64]] = []
    total = 0
    for client in clients(path):
        for window in client.windows:
            if window.rate_per_s <= 0 or not start_s - WINDOW_S < window.start_s < end_s:
                continue
            total += int(window.rate_per_s * rate_scale * WINDOW_S)
            if total > MAX_REQUESTS:
                raise WorkloadError(
                    f"{path}: more than {MAX_REQUESTS} requests in {duration_s:g} s; "
                    "ask for a shorter duration or a smaller rate scale"
                )
            batch = _window_requests(client, window, rate_scale, seed)
            keep = (batch[0] >= start_s) & (batch[0] < end_s)
            arrivals.append(batch[0][keep])
            inputs.append(batch[1][keep])
            outputs.append(batch[2][keep])
    if not sum(len(times) for times in arrivals):
        raise WorkloadError(f"{path}: no requests between {start_s:g} s and {end_s:g} s")
    times = np.concatenate(arrivals)
    order = np.argsort(times, kind="stable")
    columns = (times[order] - start_s, np.concatenate(inputs)[order], np.concatenate(outputs)[order])
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return Workload(
        name=name or f"servegen-{path.name}",
        requests=tuple(Request(i, t, model, n, m) for i, (t, n, m) in enumerate(rows)),
        source=str(path),
        notes={
            "01.servegen": f"arrivals and lengths drawn from the clients' distributions: {start_s:g} s to "
            f"{end_s:g} s, rate x {rate_scale:g}, seed {seed}"
        },
    )


def _check_interval(start_s: float, duration_s: float, rate_scale: float) -> None:
    if not 0 <= start_s < 1e9 or not 0 < duration_s < 1e9 or not 0 < rate_scale < 1e6:
        raise WorkloadError(
            f"cannot cut {duration_s:g} s from {start_s:g} s at rate x {rate_scale:g}: "
            "start must be >= 0, duration and rate scale > 0"
        )


def _window_requests(
    client: Client, window: RateWindow, rate_scale: float, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    rng = np.random.default_rng([seed, client.number, int(window.start_s)])
    mean = window.rate_per_s * rate_scale * WINDOW_S
    count = int(mean) + (rng.random() < mean % 1.0)
    times = counted_times(rng, count, WINDOW_S, window.cv, window.family) + window.start_s
    input_pdf, output_pdf = client.lengths(window.start_s)
    return times, input_pdf.sample(rng, count), output_pdf.sample(rng, count)


def _windows(path: Path) -> Iterator[RateWindow]:
    last_s = -1.0
    for line, text in lines(path):
        fields = csv_fields(path, line, text, _COLUMNS)
        start_s, rate, cv = (
            number(path, line, name, value)
            for name, value in zip(("t_s", "rate", "cv"), fields, strict=False)
        )
        if start_s <= last_s:
            raise WorkloadError.at(path, line, f"window at {start_s:g} s is not after {last_s:g} s")
        if not 0 <= rate <= 1e6 or not 0 <= cv <= 1e4 or start_s > 1e9:
            raise WorkloadError.at(
                path, line, f"t_s {start_s:g}, rate {rate:g}, cv {cv:g}: out of range (none negative or huge)"
            )
        yield RateWindow(start_s, rate, cv, _family(path, line, fields[3], rate))
        last_s = start_s
    if last_s < 0:
        raise WorkloadError(f"{path}: is empty")


def _family(path: Path, line: int, pattern: str, rate: float) -> Family:
    pattern = pattern.strip().lower()
    if not pattern and rate == 0:
        return Family.GAMMA
    try:
        return Family(pattern)
    except ValueError:
        raise WorkloadError.at(
            path, line, f"pattern is {pattern[:40]!r}: must be Gamma or Weibull where the rate is not 0"
        ) from None


def _dataset(path: Path) -> dict[str, dict[str, Any]]:
    try:
        if path.stat().st_size > 2**28:
            raise WorkloadError(f"{path}: is larger than 256 MiB")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    data = json_object(path, 1, text)
    for key, entry in data.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and isinstance(entry, dict)):
            raise WorkloadError(f"{path}: {key[:40]!r} is no window start in seconds with an object of PDFs")
    if not data:
        raise WorkloadError(f"{path}: holds no length distributions")
    return data


def parse_pdf(where: str, text: object) -> Pdf | None:
    """A `{tokens: probability}` literal as a distribution; None when it is empty. Zero tokens are left out.

    Raises:
        WorkloadError: for anything but a flat literal of numbers.
    """
    if not isinstance(text, str) or len(text) > _MAX_PDF_CHARS or not _PDF.fullmatch(text.strip()):
        raise WorkloadError(f"{where}: must be a literal like '{{12: 0.5, 13: 0.5}}', not {text!r:.60}")
    try:
        items = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise WorkloadError(f"{where}: is no literal: {error!s:.80}") from error
    pairs = []
    for tokens, share in items.items() if isinstance(items, dict) else [("?", 0)]:
        if type(tokens) is not int or not 0 <= tokens <= MAX_TOKENS:
            raise WorkloadError(f"{where}: {tokens!r:.40} tokens: must be whole, from 0 to {MAX_TOKENS}")
        if not isinstance(share, int | float) or not 0 <= share <= 1 + 1e-6:
            raise WorkloadError(f"{where}: probability {share!r:.40} of {tokens} tokens is not in [0, 1]")
        if tokens > 0 and share > 0:
            pairs.append((tokens, float(share)))
    if not pairs:
        return None
    pairs.sort()
    cumulative = np.cumsum([share for _, share in pairs])
    return Pdf(np.array([tokens for tokens, _ in pairs], dtype=np.int64), cumulative / cumulative[-1])
