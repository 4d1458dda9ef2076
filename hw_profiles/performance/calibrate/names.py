"""What measurement files call devices and models, and what the profiles call them."""

from __future__ import annotations

from hw_profiles.errors import ProfileError
from hw_profiles.loader import load_device, load_model
from hw_profiles.schema import DeviceProfile, ModelSpec

DEVICES = {"H200-SXM-141GB": "h200", "h100-80gb": "h100-sxm"}
"""Beyond the aliases of the profiles themselves."""
MODELS = {
    "Meta-Llama-3-8B": "llama-3-8b",
    "Meta-Llama-3-70B": "llama-3-70b",
    "llama2-70b": "llama-2-70b",
    "llama2_70b": "llama-2-70b",
    "llama1_30b": "llama-1-30b",
    "qwen3-a3b-30b-moe": "qwen3-30b-a3b",
}
SUFFIXES = ("-instruct-2507", "-instruct-fp8", "-instruct", "-hf", "-fp8", "-nvfp4")


def device(source_name: str) -> DeviceProfile | None:
    """Profile of a device that a source names; None: not carried."""
    for name in (DEVICES.get(source_name), source_name.lower().replace("_", "-")):
        if name is None:
            continue
        try:
            return load_device(name)
        except ProfileError:
            continue
    return None


def model(source_name: str) -> ModelSpec | None:
    """Spec of a model that a source names, e.g. `Qwen/Qwen3-30B-A3B-Instruct-2507`; None: not carried."""
    last = source_name.rsplit("/", 1)[-1]
    plain = last.lower()
    stems = [plain]
    for suffix in SUFFIXES:
        if plain.endswith(suffix):
            stems.append(plain.removesuffix(suffix))
    for name in (MODELS.get(last), *stems):
        if name is None:
            continue
        try:
            return load_model(name)
        except ProfileError:
            continue
    return None
