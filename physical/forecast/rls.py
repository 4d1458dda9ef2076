"""Linear regression that is updated with every observation and forgets old ones."""

from __future__ import annotations

from collections.abc import Sequence


class RecursiveLeastSquares:
    """y ~ w . x by recursive least squares with exponential forgetting (Ljung and Soderstrom, 1983).

    `weights` are what is believed first, `spread` how far they may be off (standard deviation, in units of y per x).
    While the inputs do not vary, forgetting would let the uncertainty grow without end: it is bounded by what it was at
    first (cf. Salgado, Goodwin and Middleton, 1988).
    """

    def __init__(self, weights: Sequence[float], spread: Sequence[float], forgetting: float) -> None:
        if not 0 < forgetting <= 1:
            raise ValueError(f"forgetting must be in (0, 1], not {forgetting}")
        size = len(weights)
        self.weights = list(weights)
        self._forgetting = forgetting
        self._first = [s * s for s in spread]
        self._p = [[self._first[i] if i == j else 0.0 for j in range(size)] for i in range(size)]

    def __call__(self, x: Sequence[float]) -> float:
        """The expected y."""
        return sum(w * v for w, v in zip(self.weights, x, strict=True))

    def update(self, x: Sequence[float], y: float, noise: float = 1.0) -> float:
        """Learn one observation, whose own variance is `noise`; the error made before."""
        p, n = self._p, len(x)
        px = [sum(p[i][j] * x[j] for j in range(n)) for i in range(n)]
        denominator = self._forgetting * noise + sum(x[i] * px[i] for i in range(n))
        gain = [value / denominator for value in px]
        error = y - self(x)
        for i in range(n):
            self.weights[i] += gain[i] * error
        scale = 1.0 / self._forgetting
        for i in range(n):
            for j in range(n):
                p[i][j] = scale * (p[i][j] - gain[i] * px[j])
        self._bound()
        return error

    def _bound(self) -> None:
        """No weight is less certain than at the beginning."""
        p = self._p
        for i, first in enumerate(self._first):
            if p[i][i] > first:
                shrink = (first / p[i][i]) ** 0.5
                for j in range(len(p)):
                    p[i][j] *= shrink
                    p[j][i] *= shrink
