"""Forecast: what becomes of each unit's queue, memory and temperature in the next minute, and how far that can be trusted."""

from physical.forecast.forecaster import Forecaster

__all__ = ["Forecaster"]
