"""How a tensor is rounded: from its statistics and bits to a grid, and the pass that rounds to it.

grid                  a grid, and the statistics it follows from
quantizers            of weights and inputs: b -> grid, differentiable in b
least_squares         the one of them that searches where to clip
gradient_quantizers   of gradients: stochastic rounding
fake_quantize         the rounding itself, and its derivatives
fused_grids           built-in grids at once, with their slope in the bits

What may live here: the rounding of one tensor. What is multiplied afterwards, and by which arithmetic, is none of its business.
"""
