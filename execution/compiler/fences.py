"""Tensors in memory of their own between pages that nobody may touch: one byte too far is a crash at once."""

from __future__ import annotations

import ctypes
import mmap

import torch

_ALIGN_BYTES = 64
_MARK = 0xA5


class Fenced:
    """A copy of a tensor that ends at a forbidden page; the few bytes between, and those before, are marked."""

    def __init__(self, tensor: torch.Tensor) -> None:
        """CPU tensors only; contiguous afterwards."""
        source = tensor.detach().contiguous()
        page = mmap.PAGESIZE
        size = source.numel() * source.element_size()
        pages = max(1, -(-size // page))
        self._memory = mmap.mmap(-1, (pages + 2) * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._memory[page : page + pages * page] = bytes([_MARK]) * (pages * page)
        self._first = page + (pages * page - size) // _ALIGN_BYTES * _ALIGN_BYTES
        self._last = self._first + size
        self._room = (page, page + pages * page)
        if size:
            flat = torch.frombuffer(
                self._memory, dtype=source.dtype, count=source.numel(), offset=self._first
            )
            self.tensor = flat.view(source.shape).copy_(source)
        else:
            self.tensor = source.clone()
        self._was = self._memory[self._first : self._last]
        for start in (base, base + (pages + 1) * page):
            if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start), page, 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")

    def fault(self) -> str:
        """What was written that should not have been; empty: nothing."""
        if self._memory[self._first : self._last] != self._was:
            return "was written to"
        before = self._memory[self._room[0] : self._first]
        behind = self._memory[self._last : self._room[1]]
        if before.strip(bytes([_MARK])):
            return "was written to before its beginning"
        if behind.strip(bytes([_MARK])):
            return "was written to beyond its end"
        return ""
