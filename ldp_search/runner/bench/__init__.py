"""What a training step costs, against the plain one.

step       the command ldp_search.bench
timing     times and memory of steps, measured fairly
overhead   the same at the start of a run, in seconds

What may live here: measurements that a user can ask for. Those of the project itself are in benchmarks/.
"""
