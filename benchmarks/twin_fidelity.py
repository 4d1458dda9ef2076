"""How far the twin is from measured runs: per source and regime, errors of E2E, TTFT and TPOT.

Every prediction is made with coefficients that the judged rows had no part in: operator tables are other
measurements, and the engine overheads that are fitted on runs like the judged ones are refitted without
them (leave one run out, or k folds). Give it any directory of the shape described in
docs/performance-model.md; what is absent is left out, and what cannot be judged is said on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.common import (
    BenchmarkInputError,
    Options,
    Target,
    parse_options,
    progress,
    publish,
    run_main,
)
from benchmarks.fidelity import closed_loop, logs, operators, static_batches
from benchmarks.fidelity.errors import Ledger, median_error
from hw_profiles.performance import PerformanceModel
from hw_profiles.performance.calibrate.rows import DataDir, DataError

JUDGES = {
    logs.SOURCE: logs.judge,
    closed_loop.SOURCE: closed_loop.judge,
    static_batches.SOURCE: static_batches.judge,
    operators.SOURCE: operators.judge,
}
TARGETS = {"e2e": 0.05, "ttft": 0.15}


def measure(options: Options) -> Ledger:
    """Judge all sources that are there. Raises BenchmarkInputError."""
    data = DataDir(options.require_data_dir())
    performance = PerformanceModel.load()
    ledger = Ledger()
    for source, judge in JUDGES.items():
        with progress(options, source):
            try:
                judge(data, performance, ledger, quick=options.quick)
            except DataError as error:
                raise BenchmarkInputError(str(error)) from error
    if not ledger.errors:
        reasons = "; ".join(sorted(ledger.left_out)) or "none found"
        raise BenchmarkInputError(
            f"{data.root}: no measured runs to judge ({reasons}); see docs/performance-model.md"
        )
    return ledger


def targets(ledger: Ledger) -> list[Target]:
    """Median errors against the targets: all runs on devices with operator tables, and source by source."""
    found = []
    for metric, target in TARGETS.items():
        pooled = ledger.pooled(metric, table=True)
        if pooled:
            found.append(Target(f"{metric}_median_error", median_error(pooled), target, "lower"))
        for source in JUDGES:
            errors = ledger.pooled(metric, source=source, table=True)
            if errors:
                name = f"{metric}_median_error_{source.replace(' ', '_')}"
                found.append(Target(name, median_error(errors), target, "lower"))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parse_options("twin_fidelity", __doc__, argv)
    ledger = measure(options)
    if not options.json:
        for reason, count in sorted(ledger.left_out.items()):
            print(f"  left out ({count}): {reason}", file=sys.stderr)
    return publish(options, ledger.rows(), targets(ledger))


if __name__ == "__main__":
    sys.exit(run_main(main))
