"""The gateway's configuration: where it listens, whom it lets in, and its limits."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from loop.gateway.access import AccessTokens


class GatewayConfig(BaseModel):
    """Loaded once; unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    """0: any free one."""
    tokens: AccessTokens = Field(default_factory=AccessTokens, repr=False)
    """None in it: open to everybody who can connect, and so to this machine alone."""
    allow_open: bool = False
    """Listen beyond this machine without tokens all the same."""
    open_metrics: bool = False
    """/metrics needs no token even where the rest does."""

    max_in_flight: int = Field(default=4096, ge=1)
    """Requests at a time; beyond: 429."""
    max_body_bytes: int = Field(default=4 << 20, ge=1)
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """None: as the model's context allows."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Highest `max_tokens` of a request; None: as the model's context allows."""
    max_choices: int = Field(default=128, ge=1)
    """Prompts times `n` of one request."""
    deadline_s: float = Field(default=600.0, gt=0)
    """A request's time from its first byte to the end of the answer, where it asks for none."""
    max_deadline_s: float = Field(default=3600.0, gt=0)
    """The most that the header `x-request-timeout-s` can ask for; beyond it is cut to this."""

    header_timeout_s: float = Field(default=10.0, gt=0)
    """From connection, or first byte of a further request, to the end of the headers."""
    max_header_bytes: int = Field(default=64 << 10, ge=1024)
    body_timeout_s: float = Field(default=30.0, gt=0)
    """From the end of the headers to the end of the body; beyond: 408."""
    keep_alive_s: float = Field(default=75.0, gt=0)
    """Idle connections are closed after it."""
    write_stall_s: float = Field(default=60.0, gt=0)
    """A reader that has taken nothing for so long is cut off."""
    write_buffer_bytes: int = Field(default=64 << 10, ge=1024)
    """What waits for one slow reader before its request stops to be read from the engine."""
    max_connections: int | None = Field(default=None, ge=1)
    """Beyond, the connection that has been idle longest makes room. None: what the limit of open files allows."""
    shutdown_s: float = Field(default=30.0, ge=0)
    """What is in flight may take so long at a shutdown; then it is cut."""
