"""Telemetry: what GPUs and the machine show of themselves, ten times a second, for next to nothing.

`Telemetry` (sampler.py) is the door: start it, read samples, windows and events. NVML's binding is imported by
nvml.py alone, when a sampler is opened, never with this package.
"""
