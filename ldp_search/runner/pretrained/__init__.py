"""Saved models: folders that plain PyTorch, timm and transformers read too, with what was learned about bits beside.

save_load   save_pretrained, load_pretrained, push_to_hub
ldp_json    the file of the bits
recipe      how the model is made again
weights     the tensors on disk
card        the model card
hub         up to the hub, and down from it

What may live here: the exchange of trained models. Checkpoints of a run under way are in `io`.
"""
