"""One module per trace format, each with `read(path, *, model, ...) -> Workload`."""
