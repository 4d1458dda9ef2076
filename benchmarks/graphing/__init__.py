"""Parts of benchmarks.graphs."""
