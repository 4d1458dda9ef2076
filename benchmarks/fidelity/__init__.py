"""Parts of benchmarks.twin_fidelity: one module a kind of measurement."""
