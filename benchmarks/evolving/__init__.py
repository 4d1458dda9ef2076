"""Parts of benchmarks.engine_evolution and benchmarks.compile: engines under load while their execution evolves."""
