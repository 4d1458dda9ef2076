"""The journal in words: what was decided, and from which figures."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Entry = dict[str, Any]
_WORDS = {
    "started": "began to watch {model} on {threads} threads",
    "hot": "{unit} at {rows} rows could win {could_win_s:.3f} s of {spent_s:.3f} s",
    "searching": "{unit} at {rows} rows: looking for better, it takes {share:.1%} of the time",
    "compiling": "{unit}: compiling {variant}",
    "compiled": "{unit}: {variant} compiled in {seconds:.1f} s ({cpu_s:.1f} CPU seconds)",
    "right": "{unit}: {variant} is right in {cases} cases; typical error {error_rms:.2g}, the original's {eager_error_rms:.2g}",
    "raced": "{unit}: {variant} at {rows} rows: {ratio:.2f}x [{low:.2f}, {high:.2f}], p = {p:.2g}; "
    "{before_ms:.3f} -> {after_ms:.3f} ms in its trial",
    "accepted": "{unit} at {rows} rows: {variant} accepted, {ratio:.2f}x alone",
    "refused": "{unit}: {variant} refused at {stage}: {reason}",
    "swapped": "{unit}: swapped, the step thread stood for {pause_ms:.3f} ms",
    "recalled": "{unit}: taken from the cache in {ms:.1f} ms",
    "cache-hit": "{unit}: {variant} found in the cache, {ms:.1f} ms",
    "cache-failed": "{unit}: not kept in the cache: {reason}",
    "confirmed": "{unit}: {variant} confirmed in place: {ratio:.2f}x of the whole step, p = {p:.2g}, {pairs} pairs",
    "unconfirmed": "{unit}: {variant} stays, not shown in place: {ratio:.2f}x",
    "searched": "{unit} at {rows} rows: searched, {cpu_s:.1f} CPU seconds",
    "taken-back": "{unit}: {variant} taken back: {reason} ({ratio:.2f}x)",
    "swapped-back": "{unit}: {variant} swapped back: {reason}",
    "quality": "int8: {told}",
    "trial-failed": "{unit}: the trial process failed: {reason}",
    "evolution-ended": "evolution ended: {reason}",
}
_DONE = {"confirmed": "in force", "swapped": "in force", "recalled": "in force", "accepted": "accepted",
         "refused": "refused", "taken-back": "taken back", "swapped-back": "swapped back", "compiling": "compiling",
         "searching": "compiling",
         "compiled": "compiled", "right": "proven right", "raced": "proven faster", "unconfirmed": "in force"}  # fmt: skip


class _Told(dict[str, Any]):
    """What an entry does not tell is a question mark."""

    def __missing__(self, key: str) -> _Unknown:
        return _Unknown()


class _Unknown:
    def __format__(self, _: str) -> str:
        return "?"


def in_words(entry: Entry) -> str:
    """One entry as a sentence."""
    told = _Told({key: _Unknown() if value is None else value for key, value in entry.items()})
    words = _WORDS.get(entry["event"])
    if words is None:
        rest = ", ".join(f"{k} {v}" for k, v in entry.items() if k not in {"at", "event"})
        return f"{entry['event']}: {rest}"
    try:
        return words.format_map(told)
    except (ValueError, TypeError):
        return f"{entry['event']}: {entry}"


def explained(entries: Iterable[Entry], unit: str = "") -> Iterator[str]:
    """Sentences of all entries about a unit or a variant, with their time."""
    for entry in entries:
        if unit and not any(unit in str(entry.get(key, "")) for key in ("unit", "variant", "in_force")):
            continue
        clock = time.strftime("%H:%M:%S", time.localtime(float(entry.get("at", 0.0))))
        yield f"{clock}  {in_words(entry)}"


def state_of(entries: Sequence[Entry]) -> dict[str, Any]:
    """Where each variant stands now, since the last start: {state, rows of (unit, variant, stage, figures)}."""
    begun = max((i for i, entry in enumerate(entries) if entry["event"] == "started"), default=0)
    rows: dict[tuple[str, str], tuple[str, str, str, str]] = {}
    for entry in entries[begun:]:
        event, unit = entry["event"], str(entry.get("unit", ""))
        if event == "hot":
            key = (unit, f"hot {entry.get('rows')}")
            rows[key] = (unit, "", "hot", in_words(entry))
        elif event in _DONE:
            variant = str(entry.get("variant") or "")
            if isinstance(entry.get("rows"), str):  # of a module, at one bucket
                unit = f"{unit} {entry['rows']}"
            rows[unit, variant] = (unit, variant, _DONE[event], in_words(entry))
    last = entries[-1] if entries else {"event": "nothing yet"}
    return {"state": last["event"], "rows": list(rows.values())}
