"""The interpreter's lock changes hands sooner while it is asked to, and as before after it."""

import sys
import threading

from execution.gil import yielding_often


def test_the_interval_is_short_within_and_as_before_after_the_last() -> None:
    before_s = sys.getswitchinterval()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with yielding_often():
            inside.set()
            leave.wait(300.0)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(300.0)
    with yielding_often():
        assert sys.getswitchinterval() < before_s
    assert sys.getswitchinterval() < before_s
    leave.set()
    thread.join(300.0)
    assert sys.getswitchinterval() == before_s


def test_an_error_within_leaves_it_as_it_was() -> None:
    before_s = sys.getswitchinterval()
    try:
        with yielding_often():
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert sys.getswitchinterval() == before_s
