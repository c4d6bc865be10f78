"""The Hugging Face hub: asked once, briefly, whether it is there (left to themselves, its clients retry for half a minute);
then models go up, and come down.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from ..io.hub_access import endpoint, reachable
from .card import CARD, PICTURE, merged
from .ldp_json import RECORD

FILES = ("model.safetensors", "config.json", "generation_config.json", RECORD, PICTURE)
TOKENIZERS = ("*token*.json", "vocab*", "merges.txt", "*.model", "*processor_config.json", "chat_template*")


def upload(
    folder: Path, repo_id: str, token: str | None = None, private: bool | None = None, commit_message: str | None = None,
    revision: str | None = None, create_pr: bool = False,
) -> str:  # fmt: skip
    """Put a folder of `save_pretrained` on the hub, with the tokenizer that lies there, and nothing else of it.

    The repository is made if need be. A README.md there that save_pretrained did not write stays as it is; of one that it
    did write, the part between the marks is replaced.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        OSError: the hub cannot be reached, there is no token, or the hub refuses.
    """
    import huggingface_hub

    again = f"The model is saved in {folder}; later: ldp_search.push_to_hub({str(folder)!r}, {repo_id!r})."
    if not reachable():
        raise OSError(f"The hub must be reached to push {repo_id}, but it cannot be (or HF_HUB_OFFLINE is set). {again}")
    if not (token or huggingface_hub.get_token()):
        raise OSError(f"A token that may write is needed to push {repo_id}: `hf auth login`, HF_TOKEN, or token=... {again}")
    api = huggingface_hub.HfApi(endpoint=endpoint(), token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as stage:
            found = [path for pattern in FILES + TOKENIZERS for path in folder.glob(pattern)]
            operations = [huggingface_hub.CommitOperationAdd(p.name, p) for p in dict.fromkeys(found)]
            card = merged(_remote_card(api, repo_id, revision, stage), (folder / CARD).read_text(encoding="utf-8"))
            if card is not None:
                operations.append(huggingface_hub.CommitOperationAdd(CARD, card.encode("utf-8")))
            done = api.create_commit(
                repo_id, operations, commit_message=commit_message or "Model with learned precision (ldp_search)",
                revision=revision, create_pr=create_pr,
            )  # fmt: skip
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError, OSError) as error:
        raise OSError(f"Pushing to {repo_id} failed: {' '.join(str(error).split())}\n{again}") from error
    return done.pr_url or done.commit_url


def _remote_card(api, repo_id: str, revision: str | None, stage: str) -> str | None:
    """README.md of the repository; None where there is none for certain."""
    if not api.file_exists(repo_id, CARD, revision=revision):
        return None
    return Path(api.hf_hub_download(repo_id, CARD, revision=revision, local_dir=stage)).read_text(encoding="utf-8")


def download(repo_id: str, token: str | None = None, revision: str | None = None) -> Path:
    """The folder of a model on the hub, in the hub's cache.

    Raises:
        FileNotFoundError: no such folder here, and no such repository can be reached; or it was not made by save_pretrained.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi(endpoint=endpoint(), token=token)
    try:
        reached = reachable()
        return Path(api.snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES), local_files_only=not reached))
    except (huggingface_hub.errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) if reached else "the hub cannot be reached, and its cache has it not"
        raise FileNotFoundError(
            f"{repo_id} must be a folder that ldp_search.save_pretrained wrote, or a repository of the hub: there is no such "
            f"folder, and loading it from the hub failed: {reason}"
        ) from error


def is_repo_id(name: object) -> bool:
    """Whether a name that is no folder may be one of the hub: `user/model`."""
    return isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not os.path.exists(name)
