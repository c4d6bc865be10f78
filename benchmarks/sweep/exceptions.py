"""Where the generic rules of `shrink.py` and `inputs.py` do not fit a model type."""

FIELDS: dict[str, dict] = {}
"""{configuration type: {field: value}}: as CONFIG, wherever the type stands."""

CONFIG: dict[str, dict] = {}
"""{model type: {dotted path in its configuration: value}}; a path that ends in a dot names another class for a part."""

CLASS: dict[str, str] = {}
"""{model type: class} in place of the one that `classes.py` chooses."""

INPUTS: dict = {}
"""{model type: function of an `Inputs`, giving inputs} that stand in place of the generic ones."""

LEAVE: dict[str, tuple] = {}
"""{model type: names of inputs} to leave out."""

TIMM: dict[str, dict] = {}
"""{module of timm: {"model": name, "size": of the picture, other arguments of create_model}}."""
