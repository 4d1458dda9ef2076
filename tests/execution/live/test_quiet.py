"""Nobody looks for garbage within, whoever else is at it too; what was there at the end is never looked at again."""

import gc
import sys
import threading
from collections.abc import Iterator

import pytest

from execution.live.quiet import quietly, undisturbed


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_the_collector_rests_until_the_last_one_is_done() -> None:
    interval_s = sys.getswitchinterval()
    inside, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with quietly():
            inside.set()
            go_on.wait()

    thread = threading.Thread(target=other)
    with quietly():
        thread.start()
        inside.wait()
        assert not gc.isenabled()
        assert sys.getswitchinterval() < interval_s
    assert not gc.isenabled()
    go_on.set()
    thread.join()
    assert gc.isenabled()
    assert sys.getswitchinterval() == interval_s


def test_what_was_made_stays_out_of_later_searches() -> None:
    with quietly():
        made = [[number] for number in range(1000)]
    assert gc.get_freeze_count() >= 1000
    assert not {id(one) for one in made} & {id(one) for one in gc.get_objects()}


def test_who_does_not_collect_is_not_made_to() -> None:
    gc.disable()
    with pytest.raises(RuntimeError), quietly():
        raise RuntimeError
    assert not gc.isenabled()


def test_who_exchanges_keeps_the_lock_for_as_long_as_ever() -> None:
    interval_s = sys.getswitchinterval()
    with quietly():
        short_s = sys.getswitchinterval()
        for _ in range(5):
            with undisturbed():
                assert sys.getswitchinterval() == pytest.approx(interval_s)
            assert sys.getswitchinterval() == pytest.approx(short_s)
    assert sys.getswitchinterval() == interval_s
