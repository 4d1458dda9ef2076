"""Graph passes: frozen dataclasses with a name and settings, `pass_(graph) -> graph`, put together by a pipeline string.

    Pipeline.parse("functionalise,simplify,cse,fuse_patterns,fuse_elementwise(max_inputs=8),dce")(graph)

A pass never changes a graph's inputs, the names of its results or their meaning. Each says how exact it is: `exact`, the
same bits; else its `tolerance`. A new one is a file here with `@register("name")` on it (execution.passes.base).
"""
