"""Products computed in 8-bit integers.

backend          the backend `int8`: which calls it takes
matmul           quantized operands as codes, and their product
convolution      convolutions as such products
rounding_error   what backward needs of the rounding, kept in four bits
choice           which layers gain from it, measured

What may live here: the arithmetic of codes. What a code means is said by the grids of `quantize`.
"""
