"""How long a network's layers take on this device, in every container: `python -m ldp_search.profile`.

options (its words), shapes (the layers to measure, each shape once, with inputs), runtimes (what runs them: one class a
target), onnxruntime_nodes (the kernels' own times), measure (all in turn, as a table), command (write it and tell). What a
table means is `core.bits.latency`.
"""
