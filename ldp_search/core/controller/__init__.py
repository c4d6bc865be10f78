"""The step: everything that is added to a model, in one object, and what it does once per optimizer step.

controller    the bits of all layers as one tensor, and `step`
counting      what has a place for each site, built anew when operations are counted
controller_state   it as plain data, saved and loaded
finalize      integer bits for good, at the end of a training
summary       what it says about itself
distributed   averages over processes

What may live here: what happens between steps. What happens within one is in `model` and `backends`.
"""
