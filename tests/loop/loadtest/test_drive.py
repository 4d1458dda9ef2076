from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from loop.contracts import Request, Slo
from loop.loadtest import Drive, LoadReport, Pacing, find_out, summarise
from loop.loadtest.http1 import Client, HttpError, Origin
from loop.loadtest.prompts import Prompts
from loop.loadtest.server import Endpoint, Server, TargetError, Traits
from tests.loop.loadtest.toy import SSE, Body, Toy, Write, chunk, event, piece, refuse, serving, stream


def requests(count: int, *, every_s: float = 0.0, tokens: int = 20, output: int = 4) -> list[Request]:
    return [Request(i, i * every_s, "any", tokens, output) for i in range(count)]


def run(
    toy: Toy,
    asked: list[Request],
    pacing: Pacing | None = None,
    *,
    during: Callable[[asyncio.Task[None], Drive], Awaitable[None]] | None = None,
) -> tuple[Drive, LoadReport]:
    """A drive against the toy, with what it takes known beforehand."""

    async def go() -> tuple[Drive, LoadReport]:
        client = Client(Origin.of(toy.url))
        server = Server(client.origin, "toy", None, Traits(Endpoint.COMPLETIONS, True, True, True))
        prompts = Prompts(as_tokens=True, block_tokens=16, salt=0)
        drive = Drive(client, server, asked, prompts, pacing or Pacing(timeout_s=120.0))
        task = asyncio.create_task(drive.run())
        if during is not None:
            await during(task, drive)
        await task
        client.close()
        return drive, summarise(
            drive, server, Slo(), workload="w", generated=False, connections=client.opened
        )

    return asyncio.run(go())


def test_every_request_is_answered_and_counted_as_the_server_counts() -> None:
    with serving() as toy:
        _, report = run(toy, requests(30))
    assert (report.planned, report.sent, report.answered, report.failed) == (30, 30, 30, 0)
    assert report.output_tokens == 120
    assert report.input_tokens == 600
    assert report.itl_s.count == 90
    assert report.e2e_s.p50 >= report.ttft_s.p50 > 0.0
    assert all(len(p) == 20 for p in toy.prompts)
    assert all(body["max_tokens"] == 4 and body["ignore_eos"] for _, body in toy.asked)
    assert sum(b.sent for b in report.bins) == 30
    assert sum(b.answered for b in report.bins) == 30


def test_arrivals_do_not_wait_for_answers() -> None:
    """No request is answered before all have come: a closed loop would never get there."""
    everybody = asyncio.Event()
    count = 0

    async def script(path: str, body: Body, write: Write) -> None:
        nonlocal count
        count += 1
        if count == 40:
            everybody.set()
        await everybody.wait()
        await stream(write, body)

    with serving(script) as toy:
        drive, report = run(toy, requests(40, every_s=0.001))
    assert report.answered == 40
    assert drive.most_in_flight == 40


def test_requests_beyond_the_clients_limit_are_not_sent_but_counted() -> None:
    released: list[bool] = []

    async def script(path: str, body: Body, write: Write) -> None:
        while not released:
            await asyncio.sleep(0.002)
        await stream(write, body)

    async def during(task: asyncio.Task[None], drive: Drive) -> None:
        while len(drive.outcomes) < 7:
            await asyncio.sleep(0.001)
        released.append(True)

    with serving(script) as toy:
        _, report = run(toy, requests(10), Pacing(timeout_s=120.0, max_in_flight=3), during=during)
    assert (report.sent, report.answered, report.failed) == (3, 3, 7)
    assert [(e.kind, e.count) for e in report.errors] == [("client limit", 7)]
    assert report.goodput == pytest.approx(0.3)


async def _rejects(path: str, body: Body, write: Write) -> None:
    await refuse(write, 429, "queue is full")


async def _breaks_off(path: str, body: Body, write: Write) -> None:
    await write(SSE + chunk(piece("x")))
    raise ConnectionError


async def _talks_nonsense(path: str, body: Body, write: Write) -> None:
    await write(SSE + chunk(b"data: {oops\n\n"))
    await asyncio.sleep(5.0)


async def _fails_inside(path: str, body: Body, write: Write) -> None:
    await write(SSE + chunk(piece("x")) + chunk(event({"error": {"message": "replica lost"}})))
    await asyncio.sleep(5.0)


async def _ends_without_a_reason(path: str, body: Body, write: Write) -> None:
    await write(SSE + chunk(piece("x")) + b"0\r\n\r\n")


async def _says_nothing(path: str, body: Body, write: Write) -> None:
    await write(SSE + chunk(event(b"[DONE]")) + b"0\r\n\r\n")


async def _never_answers(path: str, body: Body, write: Write) -> None:
    await asyncio.sleep(60.0)


@pytest.mark.parametrize(
    ("script", "kind", "detail"),
    [
        (_rejects, "HTTP 429", "queue is full"),
        (_breaks_off, "disconnected", "before the answer was complete"),
        (_talks_nonsense, "malformed", "not JSON"),
        (_fails_inside, "error in stream", "replica lost"),
        (_ends_without_a_reason, "cut short", "finish reason"),
        (_says_nothing, "empty answer", "no piece"),
        (_never_answers, "timeout", "0.2 s"),
    ],
)
def test_failures_are_told_apart(
    script: Callable[[str, Body, Write], Awaitable[None]], kind: str, detail: str
) -> None:
    with serving(script) as toy:
        _, report = run(toy, requests(3), Pacing(timeout_s=0.2 if kind == "timeout" else 120.0))
    assert [(e.kind, e.count) for e in report.errors] == [(kind, 3)]
    assert detail in report.errors[0].example
    assert report.answered == 0
    assert report.goodput == 0.0


def test_nobody_listens() -> None:
    _, report = run(Toy("http://127.0.0.1:9"), requests(2))
    assert [(e.kind, e.count) for e in report.errors] == [("connect", 2)]


@pytest.mark.slow
def test_a_connection_is_used_again_and_a_stale_one_replaced() -> None:
    """The toy closes each connection after two answers, without saying so."""
    served = 0

    async def script(path: str, body: Body, write: Write) -> None:
        nonlocal served
        await stream(write, body)
        served += 1
        if served % 2 == 0:
            raise ConnectionError

    with serving(script) as toy:
        _, report = run(toy, requests(12, every_s=0.08))  # not all at once, even where that lasts
    assert report.answered == 12
    assert report.client.connections < 12


def test_ending_it_by_hand_reports_what_was_done() -> None:
    async def script(path: str, body: Body, write: Write) -> None:
        if len(body["prompt"]) == 20:
            await stream(write, body)
        else:
            await asyncio.sleep(60.0)

    async def during(task: asyncio.Task[None], drive: Drive) -> None:
        while len(drive.outcomes) < 5 or len(toy.asked) < 6:
            await asyncio.sleep(0.001)
        task.cancel()

    asked = [*requests(5), Request(5, 0.01, "any", 30, 4), Request(6, 3600.0, "any", 20, 4)]
    with serving(script) as toy:
        _, report = run(toy, asked, during=during)
    assert report.ended_by_hand
    assert (report.planned, report.sent, report.answered) == (7, 6, 5)
    assert [(e.kind, e.count) for e in report.errors] == [("cancelled", 1)]


def test_requests_are_made_to_fit_the_model_and_the_limits() -> None:
    async def go(toy: Toy) -> Drive:
        client = Client(Origin.of(toy.url))
        server = Server(client.origin, "toy", 100, Traits(Endpoint.COMPLETIONS, True, True, True))
        prompts = Prompts(as_tokens=True, block_tokens=16, salt=0)
        asked = [Request(0, 0.0, "m", 500, 20), Request(1, 0.0, "m", 10, 900), Request(2, 0.0, "m", 10, 10)]
        drive = Drive(client, server, asked, prompts, Pacing())
        await drive.run()
        return drive

    with serving() as toy:
        drive = asyncio.run(go(toy))
    assert drive.clipped == 2
    sizes = sorted((len(b["prompt"]), b["max_tokens"]) for _, b in toy.asked)
    assert all(inputs + outputs <= 100 for inputs, outputs in sizes)
    assert (10, 10) in sizes


# ---- what a server takes ---------------------------------------------------------------------------------------------


def find(toy: Toy, **options: object) -> Server:
    async def go() -> Server:
        client = Client(Origin.of(toy.url), token="secret")  # noqa: S106
        try:
            return await find_out(client, model=None, **options)  # type: ignore[arg-type]
        finally:
            client.close()

    return asyncio.run(go())


def test_a_server_that_takes_everything() -> None:
    with serving(models=("a", "b"), max_model_len=4096) as toy:
        server = find(toy)
    assert (server.model, server.max_model_len) == ("a", 4096)
    assert server.traits == Traits(Endpoint.COMPLETIONS, True, True, True)
    assert all(h["authorization"] == "Bearer secret" for h in toy.headers)


def test_a_strict_server_that_takes_text_chats_only() -> None:
    async def script(path: str, body: Body, write: Write) -> None:
        if path != "/v1/chat/completions":
            await refuse(write, 404, "no such path")
        elif set(body) - {"model", "messages", "max_tokens", "stream", "stream_options"}:
            await refuse(write, 400, "unknown field")
        else:
            words = len(body["messages"][0]["content"].split())
            usage = {"prompt_tokens": 3 * words + 7, "completion_tokens": 1}
            await write(SSE)
            await write(chunk(event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})))
            await write(chunk(event({"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]})))
            await write(
                chunk(event({"choices": [], "usage": usage})) + chunk(event(b"[DONE]")) + b"0\r\n\r\n"
            )

    with serving(script) as toy:
        server = find(toy)
    assert server.traits == Traits(Endpoint.CHAT, False, False, True, tokens_per_word=3.0)


def test_a_server_that_takes_token_ids_for_something_else() -> None:
    async def script(path: str, body: Body, write: Write) -> None:
        if isinstance(body["prompt"], list):
            body["prompt"] = " ".join("several words" for _ in body["prompt"])
        await stream(write, body)

    with serving(script) as toy:
        assert not find(toy).traits.as_tokens


@pytest.mark.parametrize(
    ("status", "message"), [(401, r"refuses access .*--token"), (500, r"answers no completions: .*broken")]
)
def test_servers_that_cannot_be_tested(status: int, message: str) -> None:
    async def script(path: str, body: Body, write: Write) -> None:
        await refuse(write, status, "broken")

    with serving(script) as toy, pytest.raises(TargetError, match=message):
        find(toy)


def test_a_model_that_is_not_there() -> None:
    async def go(toy: Toy) -> None:
        await find_out(Client(Origin.of(toy.url)), model="other")

    with serving() as toy, pytest.raises(TargetError, match="has no model 'other'; it has toy"):
        asyncio.run(go(toy))


# ---- URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://h:8000", "http://h:8000"),
        ("h:8000", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000"),
        ("https://h/api/v1", "https://h:443/api"),
        ("http://[::1]:81", "http://[::1]:81"),
    ],
)
def test_urls(url: str, text: str) -> None:
    assert Origin.of(url).text == text


@pytest.mark.parametrize("url", ["", "ftp://h", "http://", "http://h:port", "http://u:p@h", "http://h/?a=1"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|port"):
        Origin.of(url)


def test_a_get_that_fails_says_where() -> None:
    async def go() -> None:
        await Client(Origin("127.0.0.1", 9, False, "")).get("/v1/models", timeout_s=5.0)

    with pytest.raises(HttpError, match=r"127\.0\.0\.1:9"):
        asyncio.run(go())
