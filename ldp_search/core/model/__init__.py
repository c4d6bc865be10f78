"""Where in a model quantized products take the place of plain ones.

sites          what has bits of its own: layers, and products outside of layers
site           one of them: its bits, ranges and clips, and the product that it computes
swap           changing the class of a module in place, and back
layers         the classes of layers
interception   the products that no layer class holds
guard          whose forward is under way
install        all of it put into a model
coverage       the share of the model that is quantized

What may live here: whatever knows of modules. Which bits they have is decided in `bits`.
"""
