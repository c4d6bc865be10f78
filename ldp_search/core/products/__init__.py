"""What multiplies: the two kinds of product that layers are made of, and torch's functions that multiply two tensors.

bilinear          linear maps and convolutions, with both their gradients
torch_functions   the functions of torch that multiply: where their operands stand, over which axes they sum
unfused           functions that hold several products, opened into them

What may live here: facts about products that hold with or without quantization.
"""
