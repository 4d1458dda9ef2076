"""From telemetry's samples to what a forecaster reads."""

from __future__ import annotations

from loop.contracts.telemetry import GpuIdentity, GpuSample, HostSample, UnitReading


def of_gpu(
    sample: GpuSample,
    identity: GpuIdentity | None = None,
    *,
    queue: float | None = None,
    arrived: float | None = None,
    served: float | None = None,
) -> UnitReading:
    """A GPU; its queue (and the counters of what came and what was served) are known to who serves, not to NVML."""
    return UnitReading(
        unit=sample.device,
        at_s=sample.at_s,
        queue=queue,
        arrived=arrived,
        served=served,
        memory_used_bytes=sample.memory_used_bytes,
        memory_total_bytes=sample.memory_total_bytes,
        temperature_c=sample.temperature_c,
        power_w=sample.power_w,
        throttle=sample.throttle,
        slowdown_c=identity.slowdown_c if identity else None,
    )


def of_host(sample: HostSample) -> UnitReading:
    """The machine itself: its queue are the tasks that run or wait for a CPU."""
    return UnitReading(
        unit=sample.device,
        at_s=sample.at_s,
        queue=sample.run_queue,
        memory_used_bytes=sample.memory_used_bytes,
        memory_total_bytes=sample.memory_total_bytes,
        temperature_c=sample.temperature_c,
        power_w=sample.power_w,
    )
