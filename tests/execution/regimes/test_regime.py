"""Reading the regime of inputs, and fitting inputs to it."""

import pytest
import torch
from torch import Tensor

from execution.regimes.regime import MaskedBatch, Regime


def _inputs(rows: int, tokens: int, mixes: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    present = torch.tensor([[letter == "1" for letter in mix] for mix in mixes])
    return torch.rand(rows, 3, 2), torch.ones(rows, tokens, dtype=torch.int64), present


def _reader() -> MaskedBatch:
    return MaskedBatch(present=2, tokens=1, inputs=3)


@pytest.mark.parametrize(
    ("mixes", "tokens", "regime"),
    [
        (["10"], 8, Regime(1, 8, "10")),
        (["10", "10", "10"], 9, Regime(4, 16, "10")),
        (["10", "11"], 100, Regime(2, 128, "1?")),
        (["01", "10"], 1, Regime(2, 8, "??")),
    ],
)
def test_regimes(mixes: list[str], tokens: int, regime: Regime) -> None:
    reader = _reader()
    inputs = _inputs(len(mixes), tokens, mixes)
    assert reader.read(inputs) == regime
    assert reader.read(inputs) == regime  # now remembered


def test_what_is_not_expected_has_no_regime() -> None:
    x, words, present = _inputs(2, 8, ["10", "10"])
    reader = _reader()
    assert reader.read((x, words)) is None
    assert reader.read((x, words, present.float())) is None
    assert reader.read(_inputs(2, 5000, ["10", "10"])) is None
    assert reader.read((x[:0], words[:0], present[:0])) is None


def test_fitting_repeats_the_last_row_and_pads_the_sequence() -> None:
    reader = _reader()
    inputs = _inputs(3, 9, ["10", "10", "10"])
    regime = reader.read(inputs)
    assert regime is not None

    x, words, present = reader.fit(inputs, regime)

    assert (x.shape, words.shape, present.shape) == ((4, 3, 2), (4, 16), (4, 2))
    assert torch.equal(x[3], inputs[0][2])
    assert words[:, 9:].eq(0).all()
    assert reader.read((x, words, present)) == regime
    (trimmed,) = reader.trim((x,), inputs)
    assert torch.equal(trimmed, inputs[0])


def test_what_fits_is_not_copied() -> None:
    reader = _reader()
    inputs = _inputs(2, 8, ["10", "10"])
    assert reader.fit(inputs, Regime(2, 8, "10")) is inputs
