"""The Hugging Face hub: asked once, briefly, whether it is there (left to themselves, its clients retry for half a minute)."""

from __future__ import annotations

import os

REACH_SECONDS = 4.0


def settle_hub(kind: str | None = None, repo: str = "") -> str | None:
    """Ask the hub, briefly, for a repository (kind: "models" or "datasets") and for a file of it; None: all is well.

    Where it is not, the hub's clients, which would try for minutes, are told so and then look into their cache only.

    Returns:
        What is the trouble, as the beginning of a sentence.
    """
    trouble = _trouble(f"/api/{kind}/{repo}" if kind else "")
    if trouble is None and kind:  # files come from other machines than answers: these may be there and those not
        trouble = _trouble(f"/{'datasets/' if kind == 'datasets' else ''}{repo}/resolve/main/README.md", of_a_file=True)
    if trouble is not None:
        _found_out["trouble"] = trouble
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported ...
        import datasets
        import huggingface_hub.constants

        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True  # ... which they may be already
    return trouble


_found_out: dict[str, str] = {}  # what the trouble was when this process told the clients that there is no hub


def _trouble(path: str = "", of_a_file: bool = False) -> str | None:
    switches = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    if any(switch.upper() in ("1", "ON", "YES", "TRUE") for switch in switches):
        return _found_out.get("trouble", "the hub may not be asked (HF_HUB_OFFLINE is set)")
    import urllib.error
    import urllib.request

    method = "GET" if path and not of_a_file else "HEAD"
    request = urllib.request.Request(endpoint() + path, method=method, headers=_authorization())
    try:
        urllib.request.urlopen(request, timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            return f"the hub at {endpoint()} answers with HTTP {error.code}"
        if method == "GET" and error.code in (401, 403, 404):  # 401 for what does not exist, unless one is logged in
            private = "or it is private and needs `hf auth login`"
            return f"the hub does not have it (HTTP {error.code} for {request.full_url}), {private}"
        return None  # it answered, and a repository need not have this file
    except TimeoutError:
        return f"the hub at {endpoint()} does not answer within {REACH_SECONDS:g} s"
    except (OSError, ValueError):
        return f"the hub at {endpoint()} cannot be reached"
    return None


def _authorization() -> dict[str, str]:
    import huggingface_hub

    token = huggingface_hub.get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def reachable() -> bool:
    return _trouble() is None


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")
