"""Operations that torch has no name for, as graphs call them (`execution.passes.kernels.NAME`)."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_norm_(  # noqa: PLR0917 the signature of aten.batch_norm
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,  # noqa: FBT001
    momentum: float,
    eps: float,
    cudnn: bool,  # noqa: ARG001, FBT001
) -> Tensor:
    """aten.batch_norm of running statistics, over its own input: the kernel reads each element before it writes it.

    Raises ValueError when it is to train, since statistics of the batch are read twice.
    """
    if training:
        raise ValueError("batch_norm_ serves: it cannot take statistics of the batch")
    nothing = x.new_empty(0)
    with torch.no_grad():  # graphs serve: there is no way back through this
        torch.ops.aten.native_batch_norm.out(
            x, weight, bias, mean, variance, False, momentum, eps,
            out=x, save_mean=nothing, save_invstd=nothing.clone(),
        )  # fmt: skip
    return x
