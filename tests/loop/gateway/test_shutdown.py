"""Going down: nothing new, what is in flight finishes or is said to be cut."""

import asyncio

from loop.gateway import Gateway, GatewayConfig
from tests.loop.gateway.backend import TinyBackend, expected
from tests.loop.gateway.harness import Raw, Served, run, served, settled

GOOD = {"model": "tiny", "prompt": "hi", "max_tokens": 3}


def gated() -> TinyBackend:
    return TinyBackend(gate=asyncio.Event(), gate_after=1)


def gate(s: Served) -> asyncio.Event:
    assert s.backend.gate is not None
    return s.backend.gate


@served(gated)
async def test_in_flight_finishes_and_new_ones_are_refused(s: Served) -> None:
    idle = await s.raw()
    await idle.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await idle.answer())[0] == 200
    whole, streamed = await s.raw(), await s.raw()
    await whole.post(GOOD)
    await streamed.post({**GOOD, "stream": True})
    await s.backend.wait_open(2)
    stopping = asyncio.create_task(s.gateway.stop())
    await settled()
    await idle.post(GOOD)
    status, headers, body = await idle.answer()
    assert (status, headers["connection"], body["error"]["code"]) == (503, "close", "shutting_down")
    new = await s.raw()
    await new.send(b"GET /health/ready HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await new.answer())[0] == 503
    assert not stopping.done()
    gate(s).set()
    assert (await whole.answer())[2]["choices"][0]["text"] == expected("hi", 3)
    await streamed.head()
    assert b"[DONE]" in await streamed.rest()
    report = await stopping
    assert (report.finished, report.cut) == (2, ())
    assert await new.rest() == b""


@served(gated)
async def test_what_is_not_done_in_time_is_cut(s: Served) -> None:
    whole, streamed, half = await s.raw(), await s.raw(), await s.raw()
    await whole.post(GOOD)
    await streamed.post({**GOOD, "stream": True})
    await half.send(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
    await half.send(b"content-length: 100\r\n\r\n{")
    await s.backend.wait_open(2)
    await streamed.head()
    await streamed.chunk()
    report = await s.gateway.stop(within_s=0.05)
    assert len(report.cut) == 3
    assert report.finished == 0
    status, _, body = await whole.answer()
    assert (status, body["error"]["code"]) == (503, "shutting_down")
    assert b'"code":"shutting_down"' in await streamed.rest()
    assert await s.gateway.stop() == report


@served()
async def test_nothing_listens_afterwards(s: Served) -> None:
    await s.gateway.stop()
    try:
        await s.raw()
    except OSError:
        return
    raise AssertionError("it still listens")


def test_serve_forever_ends_when_it_is_asked_to() -> None:
    async def check() -> None:
        gateway = Gateway(TinyBackend(), GatewayConfig(port=0))
        serving = asyncio.create_task(gateway.serve_forever())
        while not gateway.url:
            await asyncio.sleep(0)
        await settled()
        gateway.request_stop()
        report = await serving
        assert report.cut == ()

    run(check())


def test_stop_before_start() -> None:
    async def check() -> None:
        assert (await Gateway(TinyBackend(), GatewayConfig(port=0)).stop()).cut == ()

    run(check())


def test_two_at_a_time_and_one_after_another() -> None:
    async def check() -> None:
        async with Gateway(TinyBackend(), GatewayConfig(port=0)) as one:
            async with Gateway(TinyBackend(), GatewayConfig(port=0)) as two:
                assert one.url != two.url
            port = int(two.url.rpartition(":")[2])
            async with Gateway(TinyBackend(), GatewayConfig(port=port)) as three:
                raw = Raw(*await asyncio.open_connection("127.0.0.1", port))
                await raw.post(GOOD)
                assert (await raw.answer())[0] == 200
                raw.abort()
                assert three.url == two.url

    run(check())
