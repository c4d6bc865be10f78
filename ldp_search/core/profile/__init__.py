"""One forward of counting: what a model multiplies, where, and how often.

profiler     runs the forward and counts
records      what it found
provenance   whether a tensor is a weight, was computed from weights, or depends on the input
sandbox      a forward that leaves no trace

What may live here: whatever looks at a model without changing it.
"""
