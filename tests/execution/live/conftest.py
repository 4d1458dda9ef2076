"""One thread of arithmetic, as in the engine's own tests; and what the native back end needs."""

from collections.abc import Iterator

import pytest
import torch

from execution.live.decode.backend import compiler

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler on this machine")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
