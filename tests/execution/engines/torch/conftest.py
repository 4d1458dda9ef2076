"""One thread of arithmetic: on a busy machine several of them wait for each other, and these tensors are small."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    try:
        import torch  # noqa: PLC0415 its tests are skipped where it is absent
    except ImportError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
