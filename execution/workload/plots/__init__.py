"""Pictures of a workload: one line of text, or a self-contained SVG."""
