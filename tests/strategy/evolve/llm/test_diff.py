from __future__ import annotations

import contextlib
import difflib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategy.evolve.synthesise.llm.diff import Block, DiffError, apply_blocks, find_blocks
from tests.examples import up_to

SOURCE = """def route(request, replicas, memo):
    best = 0
    for index in range(len(replicas)):
        if replicas[index].waiting < replicas[best].waiting:
            best = index

    return best
"""


def block(search: str, replace: str) -> Block:
    return Block(tuple(search.split("\n")), tuple(replace.split("\n")))


def test_blocks_are_found_amid_prose_and_fences() -> None:
    text = """I change two things.

```
<<<<<<< SEARCH
a
=======
b
>>>>>>> REPLACE
```
and

<<<<<<<SEARCH
```python
c
```
=======

```python
```
>>>>>>> UPDATED
Done."""
    blocks, breaks_off = find_blocks(text)
    assert blocks == [Block(("a",), ("b",)), Block(("c",), ())]
    assert not breaks_off


@pytest.mark.parametrize("end", ["", "=======\nb", "=======\nb\n======="])
def test_a_block_without_end_breaks_off(end: str) -> None:
    assert find_blocks(f"<<<<<<< SEARCH\na\n{end}") == ([], True)


def test_a_rule_line_in_the_replacement_is_kept() -> None:
    blocks, _ = find_blocks("<<<<<<< SEARCH\na\n=======\nTitle\n=======\n>>>>>>> REPLACE\n")
    assert blocks == [Block(("a",), ("Title", "======="))]


@pytest.mark.parametrize(
    "search",
    [
        "    best = 0",
        "    best = 0   ",
        "best = 0",
        "\n\n    best = 0\n\n",
        "\tbest = 0",
    ],
)
def test_blanks_around_do_not_matter_and_the_depth_is_kept(search: str) -> None:
    depth = search.expandtabs(4).strip("\n")
    indent = depth[: len(depth) - len(depth.lstrip())]
    changed = apply_blocks(SOURCE, [block(search, f"{indent}best = 1")])
    assert changed == SOURCE.replace("    best = 0", "    best = 1")


def test_the_replacement_moves_with_the_search_and_blank_lines_inside_are_ignored() -> None:
    search = "if replicas[index].waiting < replicas[best].waiting:\n    best = index\nreturn best"
    with pytest.raises(DiffError, match="not in the source"):  # another structure
        apply_blocks(SOURCE, [block(search, "pass")])
    search = "if replicas[index].waiting < replicas[best].waiting:\n\n    best = index"
    replace = "if index % 2:\n\n    best = index"
    assert apply_blocks(SOURCE, [block(search, replace)]) == SOURCE.replace(
        "        if replicas[index].waiting < replicas[best].waiting:\n            best = index",
        "        if index % 2:\n\n            best = index",
    )


def test_what_cannot_be_moved_left_is_refused() -> None:
    deep = "            best = 0"
    with pytest.raises(DiffError, match="not in the source"):
        apply_blocks(SOURCE, [block(deep, "best = 1")])


def test_doubt_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DiffError, match=r"block 2 of 2: .* in 2 places; quote more lines"):
        apply_blocks("a\nb\na\n", [block("b", "c"), block("a", "d")])
    with pytest.raises(DiffError, match="is empty"):
        apply_blocks(SOURCE, [block("  ", "x")])


def test_an_exact_place_beats_a_shifted_one() -> None:
    assert apply_blocks("  a\na\n", [block("a", "b")]) == "  a\nb\n"


LINES = st.lists(
    st.sampled_from(["x = 1", "    y = 2", "", "def f():", "    return x", "# note", "        z", "é = 'ü'"]),
    max_size=14,
)


def blocks_between(old: list[str], new: list[str]) -> list[Block]:
    """What a careful author would write: a block for each change, with all that stands before it quoted."""
    blocks, grown = [], 0
    text = list(old)
    for what, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if what == "equal":
            continue
        before = text[: i1 + grown]
        blocks.append(Block(tuple(text[: i2 + grown]), (*before, *new[j1:j2])))
        text[i1 + grown : i2 + grown] = new[j1:j2]
        grown += (j2 - j1) - (i2 - i1)
    return blocks


@settings(max_examples=up_to(100), deadline=None)
@given(LINES, LINES)
def test_an_exact_unambiguous_diff_is_applied_exactly(old: list[str], new: list[str]) -> None:
    old, new = ["<begin>", *old], ["<begin>", *new]  # a first line that is unique, so the block is
    source, expected = "\n".join(old) + "\n", "\n".join(new) + "\n"
    assert apply_blocks(source, blocks_between(old, new)) == expected


@settings(max_examples=up_to(100), deadline=None)
@given(LINES, st.integers(0, 13), st.integers(1, 4), st.integers(0, 8), st.booleans())
def test_a_block_changes_its_place_alone_or_is_refused(
    lines: list[str], start: int, count: int, shift: int, trailing: bool
) -> None:
    quoted = lines[start : start + count]
    search = tuple(" " * shift * bool(line.strip()) + line + "  " * trailing for line in quoted)
    source = "\n".join(lines) + "\n"
    try:
        changed = apply_blocks(source, [Block(search, ("REPLACED",))]).splitlines()
    except DiffError:
        places = sum(lines[i : i + len(quoted)] == quoted for i in range(len(lines)))
        assert places != 1 or shift or trailing or not any(line.strip() for line in quoted)
        return
    at = [i for i, line in enumerate(changed) if line.strip() == "REPLACED"]
    assert len(at) == 1
    gone = len(lines) - len(changed) + 1
    assert changed[: at[0]] == lines[: at[0]]
    assert changed[at[0] + 1 :] == lines[at[0] + gone :]
    said = [line.strip() for line in quoted if line.strip()]
    assert [line.strip() for line in lines[at[0] : at[0] + gone] if line.strip()] == said


@settings(max_examples=up_to(100), deadline=None)
@given(st.text(alphabet="<=> SEARCHPLabc\n`~\t", max_size=300))
def test_no_text_breaks_the_reader(text: str) -> None:
    blocks, _ = find_blocks(text)
    with contextlib.suppress(DiffError):
        assert apply_blocks(SOURCE, blocks).endswith("\n")
