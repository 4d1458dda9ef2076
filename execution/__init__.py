"""The nerves: how work is done. Here the twin (a simulated data plane) and the workloads that drive it."""
