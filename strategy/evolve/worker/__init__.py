"""The inside of a sandbox: what runs in a worker process, and only there.

Kept apart from `strategy.evolve.sandbox`, the outside, so that a worker starts fast and holds little.
"""
