"""Apache TVM: kernels from templates, and kernels that MetaSchedule tunes. The only place that imports tvm."""

from execution.compiler.backends.tvm.backend import TemplateBackend
from execution.compiler.backends.tvm.metaschedule import MetaSchedule

__all__ = ["MetaSchedule", "TemplateBackend"]
