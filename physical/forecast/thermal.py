"""Heat: first-order stages of resistance and capacity between a unit's power and its temperature, fitted while it runs.

A stage lags the power by its time constant and adds R x degrees; a die, its heat sink and the air of the room are three
of them, so the temperature is T0 + sum of R_i x_i (a Foster network). The time constants are a fixed row from
seconds to minutes; T0 and the resistances are fitted by recursive least squares with forgetting. Temperatures come in
whole degrees: regressing tomorrow's on today's would put their rounding into the inputs and find time constants far too
short; here it is in the output alone.
"""

from __future__ import annotations

from math import exp

from physical.forecast.persistence import Persistence
from physical.forecast.rls import RecursiveLeastSquares

TIME_CONSTANTS_S = (3.0, 15.0, 60.0, 240.0)
_FIRST_RESISTANCE = 7.0
"""Degrees per 100 W of all stages together to begin with: a data-centre card rises some 45 degrees at 650 W."""
_SPREAD = 1.0
"""How far each stage's share of it may be off."""
_TRANSIENTS_S = (60.0, 240.0)
"""A unit that is first seen has not been at its power for ever: what its slow stages still have to go fades so."""
_TRANSIENT_C = 8.0
_NOISE = 2.0
"""Variance of what the stages leave unexplained: rounding, and a fan."""
_MEMORY_S = 900.0
_POWER_LAG_S = 2.0
_RESIDUAL_LAG_S = 4.0
_WATTS = 100.0


class ThermalModel:
    """Power in, temperature out. `observe` at any steps; `after` says what comes if power goes on as it does."""

    def __init__(self) -> None:
        self._began_s: float | None = None
        self._at_s = 0.0
        self._power = Persistence(_POWER_LAG_S)
        self._lagged = [0.0] * len(TIME_CONSTANTS_S)
        self._fit = RecursiveLeastSquares((0.0,), (1.0,), 1.0)
        self._residual = 0.0
        self.temperature_c = 0.0

    @property
    def ready(self) -> bool:
        """Has anything been observed?"""
        return self._began_s is not None

    @property
    def resistances_c_per_w(self) -> tuple[float, ...]:
        """Of each stage, as fitted; below 0 where the data cannot tell neighbours apart."""
        return tuple(weight / _WATTS for weight in self._fit.weights[1 : 1 + len(TIME_CONSTANTS_S)])

    @property
    def resistance_c_per_w(self) -> float:
        """Degrees per watt in the long run."""
        return sum(self.resistances_c_per_w)

    def observe(self, at_s: float, power_w: float, temperature_c: float) -> None:
        """Learn what was seen. What is not later than the last is left out."""
        step_s = at_s - self._at_s
        if self._began_s is None:
            self._begin(at_s, power_w, temperature_c)
        elif step_s > 0:
            self._at_s, self.temperature_c = at_s, temperature_c
            self._power.observe(at_s, power_w)
            for index, tau_s in enumerate(TIME_CONSTANTS_S):
                self._lagged[index] = power_w + (self._lagged[index] - power_w) * exp(-step_s / tau_s)
            inputs = self._inputs(self._lagged, at_s)
            self._fit.update(inputs, temperature_c, _NOISE)
            residual = temperature_c - self._fit(inputs)
            self._residual += (1 - exp(-step_s / _RESIDUAL_LAG_S)) * (residual - self._residual)

    def after(self, horizon_s: float, power_w: float | None = None) -> float:
        """The temperature `horizon_s` ahead if the power is `power_w` from now on (None: if it goes on as it was lately,
        and returns to its mean as it is used to).
        """
        later = [
            power_w + (lagged - power_w) * exp(-horizon_s / tau_s)
            if power_w is not None
            else self._power.lagged(lagged, tau_s, horizon_s)
            for lagged, tau_s in zip(self._lagged, TIME_CONSTANTS_S, strict=True)
        ]
        return self._fit(self._inputs(later, self._at_s + horizon_s)) + self._residual

    def _begin(self, at_s: float, power_w: float, temperature_c: float) -> None:
        """As if it had been so for long, but for the transients."""
        self._began_s = self._at_s = at_s
        self.temperature_c = temperature_c
        self._power.observe(at_s, power_w)
        self._lagged = [power_w] * len(TIME_CONSTANTS_S)
        stages = len(TIME_CONSTANTS_S)
        ambient = temperature_c - _FIRST_RESISTANCE * power_w / _WATTS
        self._fit = RecursiveLeastSquares(
            (ambient, *[_FIRST_RESISTANCE / stages] * stages, *[0.0] * len(_TRANSIENTS_S)),
            (15.0, *[_SPREAD] * stages, *[_TRANSIENT_C] * len(_TRANSIENTS_S)),
            exp(-1.0 / _MEMORY_S),
        )

    def _inputs(self, lagged: list[float], at_s: float) -> list[float]:
        age_s = at_s - (self._began_s or 0.0)
        return [1.0, *(watts / _WATTS for watts in lagged), *(exp(-age_s / tau) for tau in _TRANSIENTS_S)]
