"""Reader of closed-loop serving tests: `aiconfigurator/silicon_sample.csv`.

One row is one test: so many requests kept in flight (`batch_size`), prompts of `isl` and answers of `osl`
tokens, mean TTFT and TPOT in milliseconds. Only aggregated (not disaggregated) serving is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from hw_profiles.performance.calibrate import names
from hw_profiles.performance.calibrate.rows import DataDir, DataError, Row
from hw_profiles.schema import DeviceProfile, ModelSpec

MS = 1e-3
PATTERN = "aiconfigurator/silicon_sample.csv"
PRECISIONS = {
    "": "bf16",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8",
}
PRECISIONS |= {"fp4": "fp4", "nvfp4": "fp4"}


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """One test, in seconds."""

    device: DeviceProfile
    model: ModelSpec
    engine: str
    precision: str
    tp: int
    pp: int
    concurrency: int
    """Per replica."""
    input_tokens: int
    output_tokens: int
    varied: bool
    """Lengths are drawn between 80 % and 100 % of the stated ones (the InferenceMAX harness), not fixed."""
    ttft_s: float
    tpot_s: float
    place: str

    @property
    def e2e_s(self) -> float:
        """Mean time of a whole request."""
        return self.ttft_s + (self.mean_output_tokens - 1.0) * self.tpot_s

    @property
    def mean_output_tokens(self) -> float:
        """Of an answer."""
        return self.output_tokens * (0.9 if self.varied else 1.0)


def read(
    data: DataDir, skipped: dict[str, int], *, backends: tuple[str, ...] = ("vllm",)
) -> list[ClosedLoop]:
    """Rows of these backends, in order; `skipped` counts the others by reason. Raises DataError."""
    found = []
    for path in data.glob(PATTERN):
        for row in data.rows(path):
            backend = row.text("backend")
            if backend not in backends:
                skipped[f"engine {backend}"] = skipped.get(f"engine {backend}", 0) + 1
                continue
            test = _test(row, skipped)
            if test is not None:
                found.append(test)
    return found


def _test(row: Row, skipped: dict[str, int]) -> ClosedLoop | None:
    reason = ""
    device, model = names.device(row.text("system")), names.model(row.text("model_path"))
    if row.text("mode") != "agg":
        reason = f"mode {row.text('mode')}"
    elif device is None:
        reason = f"no profile of {row.text('system')}"
    elif model is None:
        reason = f"no profile of {row.text('model_path')}"
    elif _count(row, "attention_dp_size") != 1:
        reason = "data parallel attention"
    elif row.text("precision") not in PRECISIONS:
        reason = f"precision {row.text('precision')}"
    if reason or device is None or model is None:
        skipped[reason] = skipped.get(reason, 0) + 1
        return None
    dtype = PRECISIONS[row.text("precision")]
    if not row.text("precision") and model.name.endswith("-fp8"):
        dtype = "fp8"
    source = row.text("silicon_data_source")
    return ClosedLoop(
        device=device,
        model=model.with_weights(dtype),  # type: ignore[arg-type]
        engine=f"{row.text('backend')} {row.text('backend_version')}".strip(),
        precision=dtype,
        tp=_count(row, "tp_size"),
        pp=_count(row, "pp_size"),
        concurrency=_count(row, "batch_size"),
        input_tokens=_count(row, "isl"),
        output_tokens=_count(row, "osl"),
        varied=source.startswith("db-dump"),
        ttft_s=row.positive("silicon_ttft_ms") * MS,
        tpot_s=row.positive("silicon_tpot_ms") * MS,
        place=row.place,
    )


def _count(row: Row, key: str) -> int:
    if not row.has(key):
        return 1
    value = row.positive(key)
    if value != int(value):
        raise DataError(f"{row.place}: {key} must be a whole number, not {value:g}")
    return int(value)
