"""Starting point of the calibration: what is assumed where nothing was measured."""

from __future__ import annotations

from hw_profiles.performance.coefficients import (
    Coefficients,
    DeviceCoefficients,
    EngineFit,
    OperatorFit,
    Roofline,
    StartFit,
)

_GPU = {
    "gemm": Roofline(compute=0.75, memory=0.85, launch_s=3e-6),
    "elementwise": Roofline(compute=1.0, memory=0.6, launch_s=1.2e-5),
    "attention_prefill": Roofline(compute=0.5, memory=0.6, launch_s=6e-6),
    "attention_decode": Roofline(compute=0.4, memory=0.75, launch_s=6e-6),
    "moe": Roofline(compute=0.5, memory=0.75, launch_s=2e-5),
    "all_reduce": Roofline(compute=1.0, memory=0.25, launch_s=2e-5),
    "sampler": Roofline(compute=1.0, memory=0.2, launch_s=4e-5),
}
"""Collectives: NCCL over PCIe through the host; LLMServingSim states 16 GB/s and 20 us for its PCIe 5 node."""
_CPU = {
    "gemm": Roofline(compute=0.5, memory=0.7, launch_s=5e-6),
    "elementwise": Roofline(compute=1.0, memory=0.4, launch_s=3e-5),
    "attention_prefill": Roofline(compute=0.3, memory=0.5, launch_s=1e-5),
    "attention_decode": Roofline(compute=0.3, memory=0.5, launch_s=1e-5),
    "moe": Roofline(compute=0.3, memory=0.5, launch_s=5e-5),
    "all_reduce": Roofline(compute=1.0, memory=0.5, launch_s=2e-5),
    "sampler": Roofline(compute=1.0, memory=0.3, launch_s=5e-5),
}
_START = StartFit(
    process_s=16.4,
    warm_up_s=12.0,
    source="process: vLLM import 14 s + engine 2.4 s, warm caches, measured on two CPU cores; warm-up: assumed",
)


def assumed() -> Coefficients:
    """Rooflines with textbook efficiencies, one set a device class."""
    return Coefficients(
        classes={
            "gpu": DeviceCoefficients(
                operators={name: OperatorFit(roofline) for name, roofline in _GPU.items()},
                engine=EngineFit(base_s=5e-4, per_sequence_s=2e-6, first_token_s=5e-3),
                start=_START,
                busy_power=0.7,
            ),
            "cpu": DeviceCoefficients(
                operators={name: OperatorFit(roofline) for name, roofline in _CPU.items()},
                engine=EngineFit(base_s=1e-3, per_sequence_s=2e-5, first_token_s=5e-3),
                start=_START,
                busy_power=0.9,
            ),
        },
        devices={},
        provenance={"sources": [], "note": "assumed; not calibrated"},
    )
