"""A compiled decode step in this process: library, packed weights, and the call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from execution.compiler.port import CompileError
from execution.live.decode.pack import Packed, pack
from execution.live.decode.shape import DecodeShape, Weights

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64


class _Matrix(ctypes.Structure):
    _fields_ = (("panels", _POINTER), ("scales", _POINTER), ("bias", _POINTER))


class _Layer(ctypes.Structure):
    _fields_ = (*((name, _Matrix) for name in ("qkv", "output", "gate_up", "down")), ("kv", _POINTER))


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, _COUNT) for name in ("rows", "threads", "kv_lane", "kv_head", "length")),
        *((name, _POINTER) for name in ("tokens", "positions", "lanes", "embed", "rotations", "norm_weight")),
        *((name, _POINTER) for name in ("layers", "head", "scratch", "logits", "best")),
    )


class RowLike(Protocol):
    """What a step needs to know of one sequence."""

    @property
    def token(self) -> int:
        """The latest."""

    @property
    def position(self) -> int:
        """Where it is put."""

    @property
    def lane(self) -> int:
        """In which lane."""


@dataclass(frozen=True, slots=True)
class PreparedWeights:
    """A model's weights in panels; kept alive by who calls the step."""

    embed: torch.Tensor
    layers: tuple[tuple[Packed, ...], ...]
    norm: torch.Tensor | None
    head: Packed

    @property
    def bytes(self) -> int:
        """Memory that they take beside the model's own."""
        packed = [p for layer in self.layers for p in layer] + [self.head]
        return sum(p.panels.nbytes + (0 if p.scales is None else p.scales.nbytes) for p in packed)


class DecodeLibrary:
    """The loaded code of one model shape."""

    def __init__(self, shape: DecodeShape, path: Path) -> None:
        """Raises CompileError when the library cannot be loaded."""
        self.shape = shape
        try:
            library = ctypes.CDLL(str(path))
            self.step, scratch, panel = library.decode_step, library.scratch_floats, library.panel_columns
        except (OSError, AttributeError) as error:
            raise CompileError(f"decode_step: native: {path} does not load: {error}") from error
        scratch.restype = panel.restype = _COUNT
        scratch.argtypes = [_COUNT, _COUNT, _COUNT]
        self.step.argtypes, self.step.restype = [_POINTER], None
        self._scratch = scratch
        self.panel = int(panel())

    def scratch_floats(self, rows: int, threads: int, length: int) -> int:
        """Memory that a step needs for itself."""
        return int(self._scratch(rows, threads, length))

    def prepare(self, weights: Weights) -> PreparedWeights:
        """Pack a model's weights; takes about as long as reading them twice."""
        int8 = self.shape.int8
        return PreparedWeights(
            weights.embed.contiguous(),
            tuple(
                tuple(pack(pair, self.panel, halves=i == 2, int8=int8) for i, pair in enumerate(layer))
                for layer in weights.layers
            ),
            weights.norm,
            pack(weights.head, self.panel, int8=int8),
        )


class DecodeKernel:
    """The step of one model over one KV memory. Belongs to the thread that calls it."""

    def __init__(
        self,
        library: DecodeLibrary,
        weights: PreparedWeights,
        rotations: torch.Tensor,
        kv: Sequence[torch.Tensor],
        *,
        most_rows: int,
        threads: int,
    ) -> None:
        """`rotations`: complex64 [length, 1, head_dim / 2]; `kv`: of each layer, contiguous in its two inner
        dimensions, float32. Raises CompileError for a layout that the code does not read."""
        shape = library.shape
        _check_layout(shape, rotations, kv)
        self.most_rows = most_rows
        self._vocabulary = shape.vocabulary
        self._library = library
        self._layers = (_Layer * shape.layers)()
        for layer, packed, memory in zip(self._layers, weights.layers, kv, strict=True):
            layer.qkv, layer.output, layer.gate_up, layer.down = (_matrix(p) for p in packed)
            layer.kv = memory.data_ptr()
        self._head = _matrix(weights.head)
        self._turns = torch.view_as_real(rotations).contiguous()
        length = kv[0].shape[2]
        self._tokens, self._positions, self._lanes = ((_COUNT * most_rows)() for _ in range(3))
        self._best = (_COUNT * most_rows)()
        self._scratch = torch.zeros(library.scratch_floats(most_rows, threads, length) + 16)
        self._kept = (weights, *kv)
        address = ctypes.addressof
        self._step = _Step(
            0, threads, kv[0].stride(0), kv[0].stride(1), length,
            address(self._tokens), address(self._positions), address(self._lanes),
            weights.embed.data_ptr(), self._turns.data_ptr(),
            None if weights.norm is None else weights.norm.data_ptr(),
            address(self._layers), address(self._head), self._scratch.data_ptr(), None, None,
        )  # fmt: skip
        self._step.best = address(self._best)
        self._pointer = ctypes.byref(self._step)

    def __call__(self, rows: Sequence[RowLike]) -> tuple[torch.Tensor, list[int]]:
        """Logits [rows, vocabulary] and the likeliest token of each, -1 where they are not numbers."""
        count = len(rows)
        tokens, positions, lanes = self._tokens, self._positions, self._lanes
        for i, row in enumerate(rows):
            tokens[i], positions[i], lanes[i] = row.token, row.position, row.lane
        logits = torch.empty((count, self._vocabulary))
        step = self._step
        step.rows, step.logits = count, logits.data_ptr()
        self._library.step(self._pointer)
        return logits, self._best[:count]


def _matrix(packed: Packed) -> _Matrix:
    def pointer(tensor: torch.Tensor | None) -> int | None:
        return None if tensor is None else tensor.data_ptr()

    return _Matrix(pointer(packed.panels), pointer(packed.scales), pointer(packed.bias))


def _check_layout(shape: DecodeShape, rotations: torch.Tensor, kv: Sequence[torch.Tensor]) -> None:
    wanted = (2 * shape.kv_heads, shape.head_dim)
    for layer, memory in enumerate(kv):
        told = (memory.shape[1], memory.shape[3])
        if told != wanted or memory.dtype != torch.float32 or memory.device.type != "cpu":
            raise CompileError(f"decode_step: kv of layer {layer} is {tuple(memory.shape)} {memory.dtype}")
        if memory.stride()[2:] != (shape.head_dim, 1) or memory.stride() != kv[0].stride():
            raise CompileError(f"decode_step: kv of layer {layer} has strides {memory.stride()}")
    if len(kv) != shape.layers or rotations.dtype != torch.complex64:
        raise CompileError(f"decode_step: {len(kv)} layers of kv, rotations {rotations.dtype}")
