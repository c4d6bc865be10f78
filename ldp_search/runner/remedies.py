"""What libraries' errors mean for somebody who types words into a shell.

Errors of torch, timm, transformers and datasets name remedies of their own: arguments of a Python function, which no command
line takes. `in_words` says the same with the settings that there are.
"""

from __future__ import annotations

import re
from typing import Any

_REMEDIES = (
    (r"No pretrained weights exist|does not appear to have a file named (?:pytorch_model|model\.safetensors)",
     "There are no published weights: train from scratch with pretrained=false."),
    (r"trust_remote_code",
     "It is made by code that its repository brings along, which is not run here: import such code in a module of your own "
     "and give model=module:function."),
    (r"Dataset scripts are no longer supported",
     "It is made by a script, which is not run: give its files as data=FOLDER."),
    (r"gated repo|401 Client Error",
     "Access must be granted: accept the terms on its page of the hub, then `hf auth login` once on this machine."),
    (r"Expected more than 1 value per channel",
     "Batch norm needs two values a channel: larger pictures, or more samples in each part of a batch, by a larger batch_size= "
     "or a smaller accumulate=."),
    (r"out of memory|can't allocate memory|Cannot allocate memory",
     "Compute batches in more parts (accumulate=2, 4, ...), or give a smaller batch_size= (in evaluation eval_batch_size=)."),
    (r"does not require grad",
     "The loss must depend on parameters that learn; here none does. Is the whole model frozen?"),
)  # fmt: skip
_CONFIGS = re.compile(r"(?:available configs|Available|configurations?):\s*\[([^\]]*)\]")


def in_words(error: BaseException) -> str:
    """Kind and text of an error on one line, its remedy as a command line knows it. Nothing of it is a Python argument."""
    text = " ".join(str(error).split())
    if "BuilderConfig" in text or "Config name is missing" in text:
        named = _CONFIGS.search(text)
        known = f", one of {named[1][:300]}" if named else ""
        return f"it has several configurations: dataset.config=NAME{known}"
    if isinstance(error, ImportError):
        missing = getattr(error, "name", None) or _package_of(text)
        return f"a package is missing: pip install {missing}" if missing else f"ImportError: {text[:300]}"
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, text, re.IGNORECASE):
            return f"{text.partition('. ')[0][:200]}. {remedy}"
    return f"{type(error).__name__}: {text[:500]}"


def _package_of(text: str) -> str | None:
    """The package that a library's long text on a missing one tells to install."""
    found = re.search(r"pip install ([\w.\[\]-]+)", text)
    return found[1].rstrip(".") if found else None


def shapes_of(inputs: Any) -> str:
    """Shapes of a batch's inputs without the batch's own size, as 3x32x32."""
    tensors = inputs.values() if isinstance(inputs, dict) else inputs
    return ", ".join("x".join(map(str, tensor.shape[1:])) for tensor in tensors)
