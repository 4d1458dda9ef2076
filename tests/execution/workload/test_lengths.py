from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from execution.workload import lengths


def test_a_table_reproduces_its_data() -> None:
    rng = np.random.default_rng(0)
    data = np.rint(np.exp(rng.normal(6, 1, 50_000)) + 1)
    made = lengths.sample(rng, lengths.quantile_table(data), 50_000)
    for q in (0.05, 0.5, 0.9, 0.99):
        assert np.quantile(made, q) == pytest.approx(np.quantile(data, q), rel=0.04)


def test_weights_count_as_repetitions() -> None:
    weighted = lengths.quantile_table([10.0, 20.0, 30.0], [1.0, 2.0, 1.0])
    assert weighted[len(weighted) // 2] == 20.0
    assert (weighted[0], weighted[-1]) == (10.0, 30.0)


@pytest.mark.parametrize("rho", [-0.7, 0.0, 0.5])
def test_pairs_have_the_rank_correlation(rho: float) -> None:
    table = lengths.lognormal_table(500, 4000, 100_000)
    inputs, outputs = lengths.sample_pairs(np.random.default_rng(1), table, table, rho, 20_000)
    assert spearmanr(inputs, outputs).statistic == pytest.approx(rho, abs=0.03)


def test_lognormal_tables_hit_median_and_p99_and_stop() -> None:
    made = lengths.sample(np.random.default_rng(1), lengths.lognormal_table(600, 4000, 5000), 100_000)
    assert np.quantile(made, 0.5) == pytest.approx(600, rel=0.03)
    assert np.quantile(made, 0.99) == pytest.approx(4000, rel=0.06)
    assert made.max() <= 5000
    assert made.min() >= 1
