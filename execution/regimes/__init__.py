"""Variants of a module per input regime, built in the background, chosen online, guarded by the original.

regime       what kind of input it is: batch bucket x length bucket x modality mix
recipe       a way to make a variant: pipeline, order and back end
planner      which recipes are worth building for a regime, by a cost model
builder      builds them in a child process, and proves them there
estimate     what a variant costs, learned online, with uncertainty; drift
dispatcher   which variant runs next, and why
module       RegimeModule: wraps any module
rehearsal    variants of an earlier run, timed before the first call
store        bounds the folder of artifacts
memory       peak memory, measured
multimodal   the example: several encoders, cross-attention, heads
"""
