"""Execution that re-optimises itself while it serves: watch, compile beside it, prove, swap in, watch on.

Read it in this order: service (the whole), sampler (what is hot), variants and swap (what stands in for what), place
(trials while serving), decode (a whole step as one function), modules (single modules by the compiler service), journal.
"""
