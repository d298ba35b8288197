"""Uploads of exports to the Hugging Face hub."""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.optional import need
from ..common.text import one_line
from .exporting import export, is_export

__all__ = ["push"]

logger = logging.getLogger("quarterarc")

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def push(
    model: str | Path,
    name: str,
    *,
    format: str = "diffusers",
    samples: int = 16,
    device: str = "auto",
    private: bool = False,
    token: str | None = None,
    message: str | None = None,
) -> str:
    """Upload a trained model, with its card, to the Hugging Face hub; the repository is created if there is none.

        qa.push("runs/mine", "owner/flowers")

    Args:
        model: a model as for `export`, or the folder of an export, which is uploaded as it is.
        name: the repository, OWNER/NAME.
        format, samples, device: as for `export`.
        private: whether a new repository is private.
        token: a token that may write; by default that of the environment (HF_TOKEN) or of `hf auth login`.
        message: the message of the commit.

    Returns:
        The address of the repository.

    Raises:
        InputError: for another form of name, a model that cannot be exported, without a token, or if the hub cannot be
            reached or does not accept the upload.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"a repository of the hub is named OWNER/NAME, got '{name}'")
    hub = need("huggingface_hub", "hub", "an upload")
    if token is None and hub.get_token() is None:
        raise InputError(f"an upload needs a token of huggingface.co: {_LOG_IN}")
    api = hub.HfApi(token=token)
    if is_export(Path(model)):
        return _upload(api, Path(model), name, private, message)
    with tempfile.TemporaryDirectory() as beside:
        folder = export(model, Path(beside) / name.partition("/")[2], format=format, samples=samples, device=device)
        return _upload(api, folder, name, private, message)


def _upload(api: Any, folder: Path, name: str, private: bool, message: str | None) -> str:
    """Upload a folder as one commit: the address of the repository."""
    errors = need("huggingface_hub.errors", "hub", "an upload")
    logger.info("uploading %s", name)
    try:
        address = api.create_repo(repo_id=name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message or "Upload by quarterarc")
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        what = f"the hub does not accept the upload to {name}"
        if status in (401, 403):
            raise InputError(f"{what}: the token is not valid, or may not write there; {_LOG_IN}") from None
        raise InputError(f"{what}: {one_line(error)[:300]}") from None
    except Exception as error:  # of the network, whose classes differ between versions of the library
        raise InputError(
            f"{name} cannot be uploaded ({type(error).__name__}: {one_line(error)[:200]}): check the name and the "
            "connection to huggingface.co, and run the same command again"
        ) from None
    return str(address)
