"""Which bits, when, at what cost: everything about bits that needs no model.

space         what is searched, as plain data
coordinates   the bits of a row: their ranges, and which of them move together
problem       what a policy knows of the network, and what a step tells it
cost          bit operations and bytes
relaxations   from real-valued bits to those in force
policies/     the rules that give the bits over the training
trajectory    the bits of every step
allocation    the bits at the end
specs         the records that users see

What may live here: functions of bits, ranges and counts. Modules and tensors of data are in `model`.
"""
