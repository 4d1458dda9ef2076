"""What the gateway serves from while the engines start: the address is taken, the models are known, nobody is served."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from itertools import chain

from loop.contracts import (
    EngineOutput,
    Metric,
    ModelCard,
    ServeRequest,
    ServingBackend,
    Tokenizer,
    UnavailableError,
)


class LateBackend:
    """A ServingBackend that another one takes the place of."""

    def __init__(
        self, cards: tuple[ModelCard, ...], beside: Callable[[], Iterable[Metric]] = lambda: ()
    ) -> None:
        """`cards`: the models to come, none ready. `beside`: metrics of what the other one does not know."""
        self._cards = cards
        self._beside = beside
        self._backend: ServingBackend | None = None

    def open(self, backend: ServingBackend) -> None:
        """Serve from this one from now on."""
        self._backend = backend

    def models(self) -> tuple[ModelCard, ...]:
        """All that are served, or will be."""
        return self._cards if self._backend is None else self._backend.models()

    def tokenizer(self, model: str) -> Tokenizer:
        """Raises UnknownModelError; UnavailableError before it is open."""
        return self._open().tokenizer(model)

    def serve(self, request: ServeRequest) -> AsyncIterator[EngineOutput]:
        """As the other one does. Raises UnavailableError before it is open."""
        return self._open().serve(request)

    def metrics(self) -> Iterable[Metric]:
        """Only those beside it before it is open."""
        return chain(() if self._backend is None else self._backend.metrics(), self._beside())

    def _open(self) -> ServingBackend:
        if self._backend is None:
            raise UnavailableError("the engines are starting: try again in a moment")
        return self._backend
