"""A trained model as ONNX, or as torch's exported program, with its quantization in it.

export          the one way in: ldp_search.export
trace           the float graph, its layers' nodes, and inputs to compare on
float_graph     the float graph that torch makes
exported_forward  the model while it is exported; needs torch alone
dynamic_shapes  which dimensions of its inputs are free
writer          nodes of quantization put into it
integer_codes   weights stored as integers
marks           operands of products outside of layers, marked in the float graph
own_products    what becomes of these products
own_grids       grids that the graph computes by itself
cache           keys and values of causal language models as inputs and outputs
nbits           weights of few bits, for MatMulNBits
conv_outputs    outputs of convolutions
clips           bounds of integers
pools           largest of integers
sums            sums of integers
check           the result run and compared

What may live here: the file format. What a model's bits and grids are is asked of its controller.
"""
