"""One form for compute graphs: captured from modules, costed, drawn, transformed by execution.passes, run by torch.fx.

    form      Graph: nodes in program order over a networkx DAG; immutable
    capture   module -> graph, by torch.export
    rebuild   graph -> torch.fx.GraphModule
    cost      FLOPs, bytes, roofline time
    liveness  which buffers live when; peak memory of an order
    text      stable, readable text of a graph
    draw      SVG

This file imports nothing, so that what needs no torch does not load it.
"""
