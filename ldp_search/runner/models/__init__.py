"""Models by name.

aliases.py        short names
build.py          what a name stands for, and what can go wrong
hugging_face.py   models of transformers
segmenter.py      encoders of timm with a decoder, for segmentation
semantic.py       outputs and losses of the families of segmentation models
cifar.py          the CIFAR networks under timm's names; cifar_nets.py has them
"""

from .aliases import ALIASES, Alias
from .build import configuration_of, create_model, display_name, known_source, source_of, timm_options

__all__ = ["ALIASES", "Alias", "configuration_of", "create_model", "display_name", "known_source", "source_of", "timm_options"]
