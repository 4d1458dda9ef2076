"""Execution that re-optimises itself while it serves: watch, compile beside it, prove, swap in, watch on.

Read it in this order: service (the whole), sampler (what is hot), variants and swap (what stands in for what), watch (is
it still right and faster), place (trials while serving), decode and decode_rounds (a whole step as one function), modules
and module_rounds (single modules by the compiler service, traced in a helper process: tracing), quiet and waiting (how not
to disturb who serves), report, journal.
"""
