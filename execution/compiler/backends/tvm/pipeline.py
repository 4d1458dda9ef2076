"""The lowering of templates: TVM's own passes, without those that have nothing to do here.

A template writes flat loops over flat buffers. What TVM's default pipeline spends most of its time on (shrinking
buffers, merging storage, common subexpressions) is done already or done again by LLVM: a kernel of attention takes
0.5 s through here, 4 s through the default.
"""

from __future__ import annotations

from typing import Any, Final

NAME: Final = "autopoiesis_templates"


def registered() -> str:
    """The name under which tvm.compile finds it."""
    from tvm.tirx import compilation_pipeline  # noqa: PLC0415

    if NAME not in compilation_pipeline.PIPELINE_MAP:
        compilation_pipeline.register_tir_pipeline(NAME, _make)
    return NAME


def _make() -> tuple[Any, Any, Any]:
    import tvm  # noqa: PLC0415
    from tvm import s_tir, tirx  # noqa: PLC0415
    from tvm.tirx import compilation_pipeline  # noqa: PLC0415

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def lower(module: Any, _context: Any) -> Any:
        passes = [
            s_tir.transform.LowerMatchBuffer(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.NarrowDataType(32),
            tirx.transform.VectorizeLoop(True),
            tirx.transform.StmtSimplify(),
            tirx.transform.VerifyMemory(),
            tirx.transform.AnnotateEntryFunc(),
            tirx.transform.SplitHostDevice(),
            tirx.transform.MakePackedAPI(),
        ]
        return tvm.ir.transform.Sequential(passes)(module)

    return lower, compilation_pipeline.finalize_host_passes, compilation_pipeline.finalize_device_passes
