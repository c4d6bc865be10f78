"""The Hugging Face hub: asked once, briefly, whether it is there. Left to themselves, its clients retry for half a minute."""

from __future__ import annotations

import os

REACH_SECONDS = 4.0


def settle_hub() -> bool:
    """Whether the hub can be reached; where it cannot, its clients are told so and then look into their cache only."""
    if _reachable():
        return True
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported ...
    import datasets
    import huggingface_hub.constants

    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True  # ... which they may be already
    return False


def _reachable() -> bool:
    switches = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    if any(switch.upper() in ("1", "ON", "YES", "TRUE") for switch in switches):
        return False
    import urllib.error
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, ValueError):
        return False
    return True
