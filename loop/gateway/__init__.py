"""OpenAI-compatible HTTP in front of any ServingBackend.

async with Gateway(backend, GatewayConfig(port=8000)) as gateway:
await gateway.serve_forever()
"""

from loop.gateway.access import AccessError, AccessTokens
from loop.gateway.config import GatewayConfig
from loop.gateway.loops import loop_factory, settle_heap
from loop.gateway.server import Gateway, GatewayError, ShutdownReport

__all__ = [
    "AccessError",
    "AccessTokens",
    "Gateway",
    "GatewayConfig",
    "GatewayError",
    "ShutdownReport",
    "loop_factory",
    "settle_heap",
]
