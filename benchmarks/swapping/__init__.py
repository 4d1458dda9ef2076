"""The parts of benchmarks.swap: requests with known answers, policies to swap, disturbances, clients."""
