"""A training from its settings to its folder.

setup        everything that a run needs, made or found again
run_session  a run under way, and what its checkpoints hold
loop         the loop itself
batches      which samples, in which order
optimizers   optimizers and learning rates
ema          a moving average of the weights
journal      what a run tells while it trains
run_folder   where it leaves things
stopping     signals
memory       memory kept between steps
finish       how it ends

What may live here: what every training does, whatever its task and model.
"""
