"""What a kernel must show before it may serve.

    check_numerics      right: each element, and all of them together, against float64 (proof_numerics, proof_cases)
    check_determinism   the same bits each time
    compare_steps       faster: two functions in place, interleaved, with a test of significance (proof_speed)
    PairedTest          the same for pairs of times that the caller measures, such as an engine's steps

What they find are values of execution.compiler.verdict; tolerances are stated by execution.compiler.families.
"""

from __future__ import annotations

from execution.compiler.proof_cases import Case, cases_of
from execution.compiler.proof_numerics import check_determinism, check_numerics
from execution.compiler.proof_speed import PairedTest, compare_steps

__all__ = ["Case", "PairedTest", "cases_of", "check_determinism", "check_numerics", "compare_steps"]
