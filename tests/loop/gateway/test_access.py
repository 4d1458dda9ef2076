"""Bearer tokens, tiers, where the gateway may listen, and what is logged."""

import asyncio
from pathlib import Path

import pytest
import structlog

from loop.gateway import AccessError, AccessTokens, Gateway, GatewayConfig, GatewayError
from loop.gateway.config import GatewayConfig as Config
from tests.loop.gateway.backend import TinyBackend
from tests.loop.gateway.harness import Served, run, served

GOLD, PLAIN = "gold-token-1234", "plain-token-5678"
GOOD = {"model": "tiny", "prompt": "hi", "max_tokens": 2}


@served(tokens=AccessTokens({GOLD: 2, PLAIN: 0}))
async def test_tokens_and_tiers(s: Served) -> None:
    wrong = (
        "",
        "Bearer",
        "Bearer x",
        f"Basic {GOLD}",
        GOLD,
        f"Bearer {GOLD}x",
        f"Bearer {GOLD[:-1]}",
    )
    for path in ("/v1/models", "/v1/models/tiny", "/metrics"):
        assert (await s.http.get(path)).status_code == 401
    for header in wrong:
        response = await s.http.post("/v1/completions", json=GOOD, headers={"authorization": header})
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert s.backend.seen == []
    for header in (f"Bearer {GOLD}", f"bearer {PLAIN}", f"BEARER  {GOLD}"):
        response = await s.http.post("/v1/completions", json=GOOD, headers={"authorization": header})
        assert response.status_code == 200
    assert [request.tier for request in s.backend.seen] == [2, 0, 2]
    for path in ("/health", "/health/live", "/health/ready", "/openapi.json"):
        assert (await s.http.get(path)).status_code == 200


@served(tokens=AccessTokens({GOLD: 0}), open_metrics=True)
async def test_open_metrics(s: Served) -> None:
    assert (await s.http.get("/metrics")).status_code == 200


def test_token_files(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# customers\n{GOLD} 2\n\n  {PLAIN}\n")
    path.chmod(0o600)
    tokens = AccessTokens.from_file(path)
    assert tokens.tier(f"Bearer {GOLD}".encode()) == 2
    assert tokens.tier(f"Bearer {PLAIN}".encode()) == 0
    assert tokens.tier(b"Bearer other") is None
    assert tokens.tier(None) is None
    assert GOLD not in repr(tokens) + repr(vars(tokens)) + repr(Config(tokens=tokens))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "short\n",
        f"{GOLD} x\n",
        f"{GOLD} 1 2\n",
        f"{GOLD} -1\n",
        f"{GOLD}\n{GOLD} 1\n",
        "tökentoken\n",
    ],
)
def test_bad_token_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(AccessError) as error:
        AccessTokens.from_file(path)
    assert str(path) in str(error.value)
    assert GOLD not in str(error.value)


def test_token_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="cannot read"):
        AccessTokens.from_file(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(AccessError, match="cannot read"):
        AccessTokens.from_file(tmp_path / "binary")


def test_tokens_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOPOIESIS_TOKENS", raising=False)
    assert not AccessTokens.from_environment()
    monkeypatch.setenv("AUTOPOIESIS_TOKENS", f"{GOLD} 3, {PLAIN}")
    assert AccessTokens.from_environment().tier(f"Bearer {GOLD}".encode()) == 3
    monkeypatch.setenv("AUTOPOIESIS_TOKENS", "")
    with pytest.raises(AccessError, match="AUTOPOIESIS_TOKENS"):
        AccessTokens.from_environment()


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::"])  # noqa: S104
def test_beyond_this_machine_only_with_tokens(host: str) -> None:
    async def check() -> None:
        with pytest.raises(GatewayError, match="allow_open"):
            await Gateway(TinyBackend(), GatewayConfig(host=host, port=0)).start()
        for config in (
            GatewayConfig(host=host, port=0, allow_open=True),
            GatewayConfig(host=host, port=0, tokens=AccessTokens({GOLD: 0})),
        ):
            async with Gateway(TinyBackend(), config) as gateway:
                assert gateway.url.startswith("http://")

    run(check())


def test_hosts_and_ports_that_cannot_be() -> None:
    async def check() -> None:
        with pytest.raises(GatewayError, match="host"):
            await Gateway(TinyBackend(), GatewayConfig(host="no.such.host.invalid", port=0)).start()
        async with Gateway(TinyBackend(), GatewayConfig(port=0)) as gateway:
            port = int(gateway.url.rpartition(":")[2])
            with pytest.raises(GatewayError, match="cannot listen"):
                await Gateway(TinyBackend(), GatewayConfig(port=port)).start()
            with pytest.raises(GatewayError, match="started already"):
                await gateway.start()
        async with Gateway(TinyBackend(), GatewayConfig(host="localhost", port=0)) as gateway:
            assert gateway.url.startswith("http://localhost:")

    run(check())


def test_nothing_secret_is_logged() -> None:
    secrets = (GOLD, "the-prompt-text", "wrong-token-0000")
    backend = TinyBackend(failure=RuntimeError("the-prompt-text"), fail_after=3)

    @served(lambda: backend, tokens=AccessTokens({GOLD: 1}))
    async def check(s: Served) -> None:
        good = {"authorization": f"Bearer {GOLD}", "x-request-id": "my-id"}
        body = {**GOOD, "prompt": "the-prompt-text"}
        assert (await s.http.post("/v1/completions", json=body, headers=good)).status_code == 200
        assert (
            await s.http.post("/v1/completions", json={**body, "max_tokens": 9}, headers=good)
        ).status_code == 500
        wrong = {"authorization": "Bearer wrong-token-0000"}
        assert (await s.http.post("/v1/completions", json=body, headers=wrong)).status_code == 401
        await s.http.post("/v1/completions", json={**body, "the-prompt-text": 1}, headers=good)

    with structlog.testing.capture_logs() as logs:
        check()
    lines = [entry for entry in logs if entry["event"] == "request"]
    assert [line["status"] for line in lines] == [200, 500, 401, 400]
    assert lines[0]["request_id"] == "my-id"
    assert (lines[0]["tier"], lines[0]["model"], lines[0]["completion_tokens"]) == (1, "tiny", 2)
    assert any(entry["event"] == "request failed" for entry in logs)
    for secret in secrets:
        assert secret not in repr(logs)


def test_on_plain_asyncio_too() -> None:
    async def check() -> None:
        async with Gateway(TinyBackend(), GatewayConfig(port=0)) as gateway:
            host, port = gateway.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert b"200 OK" in await reader.read()
            writer.close()

    asyncio.run(check())
