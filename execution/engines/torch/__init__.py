"""The `torch` engine: continuous batching for models of the Llama family, on CPU or a GPU.

Read it in this order: engine (the async front), core (one step), scheduler (what is in a step), step (its tensors),
model (its arithmetic, as named modules that can be replaced between two steps), kv and prefix (its memory), sampler.
"""

from execution.engines.torch.engine import TorchEngine

__all__ = ["TorchEngine"]
