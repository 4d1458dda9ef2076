"""One case measured: the kernel's recipe chosen, then the kernel against its peers, and against what the machine can do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.common import Options
from benchmarks.kernelling.case import Case, bound
from benchmarks.kernelling.roofs import Roofs
from benchmarks.kernelling.timing import Call, interleaved

PICKED_BELOW = 0.95
"""Of the best peer's time, in the first rounds: a GEMM that takes more is left to eager."""


class Bench:
    """Holds what is compiled for several cases."""

    def __init__(self, options: Options, scratch: Path, roofs: Roofs) -> None:
        self._options, self._scratch, self._roofs = options, scratch, roofs
        self._built: dict[str, Any] = {}
        self._overhead_s: float | None = None

    def measure(self, case: Case, threads: int) -> dict[str, Any]:
        """One row of the table."""
        rounds = (3, 5) if self._options.quick else (3, 9)
        mine = self._kernels(case)
        peers = {**case.peers, **self._compiled_peers(case, threads)}
        row: dict[str, Any] = {
            "family": case.family, "case": case.name, "width": case.width, "rows": case.rows, "threads": threads
        }  # fmt: skip
        first = interleaved({**mine, **peers}, rounds[0])
        recipe = min(mine, key=first.__getitem__) if mine else None
        quickest = min(peers, key=first.__getitem__)
        if case.family == "gemm":
            picked = recipe if recipe is not None and first[recipe] < PICKED_BELOW * first[quickest] else None
            row["picked"] = "tvm" if picked else "eager"
            recipe = picked
        if recipe is None:
            return {**row, "peer": quickest, "peer_us": 1e6 * first[quickest], "ratio": 1.0}
        judged = interleaved({recipe: mine[recipe], **peers}, rounds[1])
        best = min(peers, key=judged.__getitem__)
        exact = case.exact()
        return {
            **row,
            "peer": best,
            "peer_us": 1e6 * judged[best],
            "tvm_us": 1e6 * judged[recipe],
            "ratio": judged[best] / judged[recipe],
            **self._limit(case, threads, judged[recipe], judged[best], mine[recipe]()),
            "error": error_of(mine[recipe](), exact),
            "peer_error": error_of(peers[best](), exact),
            "recipe": recipe,
        }

    def _limit(self, case: Case, threads: int, mine_s: float, peer_s: float, result: Any) -> dict[str, Any]:
        """What binds the case (Williams et al., 2009): memory, arithmetic, or the call; and both speeds beside it."""
        moved = case.bytes_with(_tensors(result))
        read = self._roofs.read_bytes_s(moved, threads)
        if self._overhead_s is None:
            self._overhead_s = overhead_s(self._scratch)
        limits = {
            "memory": moved / read,
            "arithmetic": case.flops / self._roofs.flops_s(threads),
            "call": self._overhead_s,
        }
        binding = max(limits, key=limits.__getitem__)
        return {
            "limit": binding,
            "limit_us": 1e6 * limits[binding],
            "gb_s": 1e-9 * moved / mine_s,
            "peer_gb_s": 1e-9 * moved / peer_s,
            "read_gb_s": 1e-9 * read,
        }

    def _kernels(self, case: Case) -> dict[str, Call]:
        """The case's kernels by recipe, each compiled once for all cases of its subject."""
        from execution.compiler.backends.tvm import TemplateBackend  # noqa: PLC0415

        backend = TemplateBackend()
        found: dict[str, Call] = {}
        for recipe in backend.recipes(case.subject):
            key = f"{case.subject.key}-{recipe.name}"
            if key not in self._built:
                folder = self._scratch / str(len(self._built))
                backend.compile(case.subject, recipe, folder)
                self._built[key] = backend.load(case.subject, recipe, folder)
            kernel = self._built[key]
            prepared = kernel.prepare(case.params)
            found[recipe.name] = bound(lambda k, p, x: k(*x, *p), kernel, prepared, case.inputs)
        return found

    def _compiled_peers(self, case: Case, threads: int) -> dict[str, Call]:
        """torch.compile of the case, where there is a C++ compiler for it."""
        import torch  # noqa: PLC0415

        if case.compiled is None:
            return {}
        found: dict[str, Call] = {}
        fewer = self._options.quick or threads > 1
        for mode in ["default"] if fewer else ["default", "max-autotune-no-cudagraphs"]:
            torch._dynamo.reset()
            function = torch.compile(case.compiled, mode=mode, dynamic=False)
            given = (*case.inputs, *case.params)
            try:
                function(*given)  # type: ignore[no-untyped-call]
            except Exception as error:  # noqa: BLE001 - no compiler, or one that fails: then it is no peer
                print(f"  torch.compile {mode}: {type(error).__name__}", file=sys.stderr)
                continue
            found[f"torch.compile {mode}"] = bound(lambda f, x: f(*x), function, given)
        return found


def overhead_s(scratch: Path) -> float:
    """Seconds of one call beyond its arithmetic: a norm of one row of eight numbers, its result allocated."""
    kernel, x = smallest(scratch)
    return interleaved({"call": lambda: kernel(x)}, 9)["call"]


def smallest(scratch: Path) -> tuple[Any, Any]:
    """(kernel, argument) of a norm of eight numbers."""
    import torch  # noqa: PLC0415

    from execution.compiler.backends.tvm import TemplateBackend, families  # noqa: PLC0415
    from execution.compiler.port import Bucket  # noqa: PLC0415

    backend = TemplateBackend()
    subject = families.rms_norm(rows=Bucket(1, 8), hidden=8, eps=1e-5, source=False)
    recipe = backend.recipes(subject)[0]
    if not (scratch / "smallest").is_dir():
        backend.compile(subject, recipe, scratch / "smallest")
    return backend.load(subject, recipe, scratch / "smallest"), torch.ones(1, 8)


def error_of(result: Any, exact: Any) -> float:
    """Greatest difference from the exact result, as a share of its greatest element."""
    pairs = zip(_tensors(result), _tensors(exact), strict=True)
    return max(
        float((got.double().reshape(want.shape) - want).abs().max() / want.abs().max()) for got, want in pairs
    )


def _tensors(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)
