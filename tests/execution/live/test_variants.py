"""The table: who serves, who serves instead, and what is left when one is taken out."""

from execution.compiler.port import Bucket
from execution.live.variants import Table, Variant


def variant(name: str, instead: Variant | None = None) -> Variant:
    return Variant(name, Bucket(1, 8), lambda: name, instead=instead)


def test_sizes_without_a_variant_go_to_the_original() -> None:
    one = variant("one")
    table = Table.of({1: one, 2: None, 4: one})
    assert [table.pick(rows) for rows in (0, 1, 2, 3, 4, 5, 999)] == [None, one, None, None, one, None, None]


def test_a_variant_that_is_off_leaves_its_place_to_what_was_there() -> None:
    old = variant("old")
    new = variant("new", instead=old)
    table = Table.of({1: new})
    new.on = False
    assert table.pick(1) is old
    old.on = False
    assert table.pick(1) is None


def test_taking_one_out_brings_back_what_it_replaced() -> None:
    old = variant("old")
    new = variant("new", instead=old)
    table = Table.of({1: new, 2: old}).without(new)
    assert (table.pick(1), table.pick(2)) == (old, old)
    assert table.without(old).variants() == []
