"""Small models with every part that the decode code distinguishes, opened without an engine around them."""

from dataclasses import replace
from pathlib import Path

import torch

from execution.engines.models import BUILTIN_MODELS, EngineModelConfig, random_weights
from execution.engines.torch.decode import DecodeStep
from execution.engines.torch.kv import LaneCache
from execution.engines.torch.model import build_model
from execution.engines.torch.rope import rotation_table
from execution.live.decode.backend import NativeBackend, decode_subject
from execution.live.decode.kernel import DecodeKernel
from execution.live.decode.pack import rounded
from execution.live.decode.proof import Bench
from execution.live.decode.shape import read_model
from execution.live.decode.source import Tile

PLAIN = replace(
    BUILTIN_MODELS["tiny-llama"], hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=16,
    max_position_embeddings=128,
)  # fmt: skip
ODD = replace(
    PLAIN, hidden_size=44, intermediate_size=75, num_attention_heads=6, num_key_value_heads=2, head_dim=10,
    qkv_bias=True, output_bias=True, mlp_bias=True, tie_word_embeddings=True,
)  # fmt: skip
"""Nothing is a multiple of a vector register; all biases; tied embeddings."""
PLAIN_TILE = Tile()
CPU = torch.device("cpu")


def bench_of(config: EngineModelConfig, *, int8: bool = False, lanes: int = 12, length: int = 64) -> Bench:
    tensors = {name: torch.from_numpy(values) for name, values in random_weights(config, 1).items()}
    if config.qkv_bias:  # drawn as zeros: give them something to do
        draw = torch.Generator().manual_seed(5)
        for name, tensor in tensors.items():
            if name.endswith("bias"):
                tensor.normal_(generator=draw)
    model = build_model(config, tensors, torch.float32, CPU)
    shape, weights = read_model(
        model, config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rms_norm_eps
    )
    if int8:
        weights, shape = rounded(weights), replace(shape, int8=True)
    cache = LaneCache(config, lanes, length, torch.float32, CPU)
    table = rotation_table(config, length, CPU)
    return Bench(shape, weights, DecodeStep(model, cache, table), cache.layers, table)


def native_kernel(
    bench: Bench, folder: Path, tile: Tile = PLAIN_TILE, *, most_rows: int = 9, threads: int = 1
) -> DecodeKernel:
    backend = NativeBackend()
    subject = decode_subject(bench.shape, most_rows, threads)
    recipe = replace(
        backend.recipes(subject)[0],
        settings=(("ahead", tile.ahead), ("panels", tile.panels), ("rows", tile.rows)),
    )
    backend.compile(subject, recipe, folder)
    library = backend.load(subject, recipe, folder)
    return DecodeKernel(
        library,
        library.prepare(bench.weights),
        bench.rotations,
        bench.kv,
        most_rows=most_rows,
        threads=threads,
    )
