"""From what a model wrote to the source of a policy: fenced or not, chatty, reasoned aloud, cut off, refused."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from strategy.evolve.static import MAX_SOURCE_BYTES, PARAMETERS, check_policy, normalised_digest
from strategy.evolve.syntax import parse
from strategy.evolve.synthesise.llm.diff import DiffError, apply_blocks, find_blocks
from strategy.policy import summary_of

NOTE_CHARS = 200
_TRIES = 12
"""Cuts at the end of a bare answer until it has to be Python."""
MAX_ANSWER_CHARS = 400_000
"""Of a longer answer only the end is read."""
_TAGS = "think|thinking|thought|reasoning|analysis"
_OPEN_THOUGHT = re.compile(rf"<({_TAGS})>", re.IGNORECASE)
_CLOSE_THOUGHT = re.compile(rf"</(?:{_TAGS})>", re.IGNORECASE)
_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([\w.+-]*)[^`\n]*$")
_CODE_LINE = re.compile(
    r'^(?:"""|\'\'\'|import \w|from [\w.]+ import |def \w+\(|[A-Z][A-Z0-9_]* *(?::.*)?= )'
)
_REFUSAL = re.compile(
    r"^(?:(?:i'?m|i am) (?:very )?sorry|sorry|i apologi[sz]e|i can(?:'?t|not)|i won'?t|"
    r"(?:i'?m|i am) (?:unable|not able)|as an ai\b|unfortunately,? i)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer came to."""

    outcome: str
    """`candidate`, `no-code`, `truncated`, `refusal`, `bad-diff` or `static`."""
    detail: str = ""
    """Why there is no candidate, in words that the model can act on."""
    source: str = ""
    form: str = ""
    """`diff` or `rewrite`."""
    note: str = ""
    """One line in the model's words."""


def read_answer(
    text: str, base: str, *, finish: str = "stop", refusal: str = "", form: str = "diff"
) -> Reading:
    """The policy that an answer holds, as edits of `base` or as a whole; `form` is what was asked for.

    The first reading that passes the static check is taken, what was asked for first. Of an answer that was
    cut off only a whole module counts: a diff may lack its other half.
    """
    if refusal or finish == "content_filter":
        return Reading("refusal", _line(refusal) or "the endpoint's content filter")
    cut_off = finish == "length"
    spoken = without_thoughts(text[-MAX_ANSWER_CHARS:])
    readings = []
    for what in (form, "rewrite" if form == "diff" else "diff"):
        reading = _as_diff(spoken, base, cut_off) if what == "diff" else _as_module(spoken, base, cut_off)
        if reading is not None and reading.outcome == "candidate":
            return reading
        readings.append(reading)
    if cut_off:
        return Reading("truncated", "the answer broke off at the limit of its length")
    best = next((reading for reading in readings if reading is not None), None)
    if best is not None:
        return best
    if _REFUSAL.match(spoken.strip().replace("\u2019", "'")):
        return Reading("refusal", _line(spoken))
    return Reading("no-code", "the answer is empty" if not spoken.strip() else "the answer holds no code")


def without_thoughts(text: str) -> str:
    """The answer proper: normal line ends, no byte-order mark, no reasoning in tags (some templates open the
    tag in the prompt, so that only its end is in the answer; some answers end before it does)."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")
    while opening := _OPEN_THOUGHT.search(text):
        closing = re.compile(rf"</{opening[1]}>", re.IGNORECASE).search(text, opening.end())
        if closing is None:
            if not text[: opening.start()].strip():
                return ""
            break
        text = text[: opening.start()] + text[closing.end() :]
    *_, last = (0, *(match.end() for match in _CLOSE_THOUGHT.finditer(text)))
    return text[last:]


def _as_diff(text: str, base: str, cut_off: bool) -> Reading | None:  # noqa: FBT001
    """None: the answer holds no block."""
    blocks, breaks_off = find_blocks(text)
    if breaks_off and not blocks:
        return Reading("bad-diff", "a block has no end: it needs the lines ======= and >>>>>>> REPLACE")
    if not blocks:
        return None
    if cut_off or breaks_off:
        return Reading("bad-diff", "the last block breaks off")
    try:
        source = apply_blocks(base, blocks)
    except DiffError as error:
        return Reading("bad-diff", str(error))
    return _checked(source, base, "diff", text)


def _as_module(text: str, base: str, cut_off: bool) -> Reading | None:  # noqa: FBT001
    """The best of the fenced pieces, else what can be read of the bare text; None: there is no code."""
    readings = [_checked(piece, base, "rewrite", text) for piece in _pieces(text, cut_off)]
    good = next((reading for reading in readings if reading.outcome == "candidate"), None)
    if (
        good or not readings or find_blocks(text)[0]
    ):  # beside blocks, other fences are parts of them or examples
        return good
    return readings[0]


def _pieces(text: str, cut_off: bool) -> list[str]:  # noqa: FBT001
    """Pieces of the answer that may be the module, the likeliest first."""
    found = [piece for piece, is_closed in _fenced(text) if is_closed or not cut_off]
    if not found and not cut_off and not find_blocks(text)[0]:
        found = list(_bare(text))
    return sorted(found, key=_likelihood, reverse=True)


def _likelihood(piece: str) -> tuple[int, int, int]:
    """(how many of the four functions, whether it parses, length)."""
    defined = sum(bool(re.search(rf"^def {name}\(", piece, re.MULTILINE)) for name in PARAMETERS)
    return defined, int(_parses(piece)), len(piece)


def _fenced(text: str) -> Iterator[tuple[str, bool]]:
    """(what stands between fences, whether it is closed); else it lasts to the end of the text. A piece that does
    not parse may hold a fence in a docstring: then it ends at a later one."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        opening = _fence(lines[at])
        if not opening:
            at += 1
            continue
        closings = [
            i
            for i in range(at + 1, len(lines))
            if (close := _fence(lines[i])) and not close[3] and close[2].startswith(opening[2])
        ]
        ends = closings or [len(lines)]
        end = next((e for e in ends[:8] if _parses(_dedented(lines[at + 1 : e]))), ends[0])
        piece = _dedented(lines[at + 1 : end])
        if piece.strip():
            yield piece, bool(closings)
        at = end + 1


def _fence(line: str) -> re.Match[str] | None:
    return _FENCE.match(line) if len(line) < 200 else None


def _bare(text: str) -> Iterator[str]:
    """What reads as Python from the first line that looks like code: paragraph by paragraph, the end is left
    out from where it does not."""
    lines = text.split("\n")
    start = next((i for i, line in enumerate(lines) if _CODE_LINE.match(line)), None)
    if start is None:
        return
    end = len(lines)
    for _ in range(_TRIES):
        wrong_line = _wrong_line("\n".join(lines[start:end]))
        if wrong_line is None:
            break
        end = min(start + wrong_line - 1, end - 1)
        while end > start and lines[end - 1].strip():
            end -= 1
        if end <= start:
            end = len(lines)
            break
    yield "\n".join(lines[start:end])


def _checked(source: str, base: str, form: str, text: str) -> Reading:
    """A candidate, or what the static check says."""
    source = "\n".join(line.rstrip() for line in source.strip("\n").split("\n")) + "\n"
    if "\0" in source:
        return Reading("static", "the source holds NUL characters", source, form)
    problems = check_policy(source)
    if problems:
        return Reading("static", "; ".join(str(problem) for problem in problems[:5]), source, form)
    if normalised_digest(source) == normalised_digest(base):
        return Reading("static", "it does exactly what the parent does: change something", source, form)
    return Reading("candidate", "", source, form, _note(source, base, text))


def _note(source: str, base: str, text: str) -> str:
    """The module's first docstring line when it is new, else the first sentence beside the code."""
    summary = summary_of(source)
    if summary and summary != summary_of(base):
        return _line(summary)
    prose = re.split(r"```|~~~|<{5,9}", text, maxsplit=1)[0]
    return _line(prose) or _line(summary)


def _line(text: str) -> str:
    """One printable line."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return textwrap.shorten(printable.strip(" #*`\"'"), NOTE_CHARS, placeholder=" ...")


def _dedented(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines))


def _parses(piece: str) -> bool:
    return _wrong_line(piece) is None


def _wrong_line(piece: str) -> int | None:
    """The line, from 1, at which a piece stops being Python; None: it is Python."""
    if len(piece) > MAX_SOURCE_BYTES or not piece.strip():
        return 1
    try:
        parse(piece)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1
    return None
