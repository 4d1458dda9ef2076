"""What benchmarks.kernels measures: cases of each family, peers, the memory's speed, tuned schedules."""
