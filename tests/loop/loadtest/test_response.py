from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.loadtest.response import EventParser, MalformedError, ResponseParser
from tests.loop.loadtest.toy import SSE, chunk, event


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The same bytes in pieces."""
    ends = [*sorted(p % (len(data) + 1) for p in places), len(data)]
    pieces, begin = [], 0
    for end in ends:
        pieces.append(data[begin:end])
        begin = end
    return pieces


def parsed(parser: ResponseParser, pieces: list[bytes]) -> bytes:
    return b"".join(parser.feed(piece) for piece in pieces if piece)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.lists(st.integers(0, 5000), max_size=12))
def test_a_chunked_body_is_the_same_however_it_is_cut(bodies: list[bytes], places: list[int]) -> None:
    data = SSE + b"".join(chunk(body) for body in bodies) + b"0\r\nx-trailer: 1\r\n\r\n"
    parser = ResponseParser()
    assert parsed(parser, cut(data, places)) == b"".join(bodies)
    assert parser.done
    assert parser.status == 200
    assert parser.keep_alive


@given(st.binary(max_size=200), st.lists(st.integers(0, 5000), max_size=8))
def test_a_body_of_known_length(body: bytes, places: list[int]) -> None:
    head = f"HTTP/1.1 404 Not Found\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    parser = ResponseParser()
    assert parsed(parser, cut(head + body, places)) == body
    assert parser.done
    assert parser.status == 404
    assert not parser.keep_alive


def test_a_body_up_to_the_end_of_the_connection() -> None:
    parser = ResponseParser()
    assert parsed(parser, [b"HTTP/1.0 200 OK\r\n\r\nab", b"cd"]) == b"abcd"
    assert not parser.done
    parser.end()
    assert parser.done
    assert not parser.keep_alive


def test_an_informational_answer_comes_before_the_real_one() -> None:
    parser = ResponseParser()
    assert (
        parser.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") == b"ok"
    )
    assert parser.status == 200


def test_two_answers_on_one_connection() -> None:
    parser = ResponseParser()
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
    assert parser.feed(one + b"a") == b"a"
    parser.reset()
    assert not parser.done
    assert parser.feed(one + b"b") == b"b"


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 twohundred OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"x" * 100_000,
    ],
)
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        ResponseParser().feed(data)


def test_an_answer_that_is_cut_off_is_refused() -> None:
    parser = ResponseParser()
    parser.feed(SSE + chunk(b"abc"))
    with pytest.raises(MalformedError, match="before the answer was complete"):
        parser.end()


@given(st.lists(st.text(max_size=30).map(str.encode), max_size=6), st.lists(st.integers(0, 500), max_size=10))
def test_events_are_the_same_however_they_are_cut(values: list[bytes], places: list[int]) -> None:
    values = [v.replace(b"\n", b"").replace(b"\r", b"") for v in values]
    parser = EventParser()
    found = [e for part in cut(b"".join(map(event, values)), places) for e in parser.feed(part)]
    assert found == values


def test_comments_other_fields_and_carriage_returns_in_events() -> None:
    parser = EventParser()
    assert parser.feed(b": ping\r\n\r\nevent: x\r\ndata:a\r\ndata: b\r\n\r\n") == [b"a\nb"]
