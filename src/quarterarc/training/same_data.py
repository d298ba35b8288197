"""The record of the images in checkpoints: a resumed run notices other images and accepts moved ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

from ..common.errors import InputError
from ..data import ImageData

__all__ = ["SameData"]

_PATIENCE = 5.0
"""Seconds for which a run that was told to stop waits for the hash of its images."""


class SameData:
    """What identifies the images of a run, at three levels of cost.

    `data` are names and sizes, which also decide the order of the images. `data_identity` adds place and modification
    times: if it is unchanged, so are the images. Otherwise `data_content`, a hash of the content, decides. It is
    computed by a thread while the run trains.

    Args:
        data: the images.
        hashed: whether this process records the content.
    """

    def __init__(self, data: ImageData, hashed: bool) -> None:
        self._data, self._content = data, ""
        self._thread = Thread(target=self._hash, name="hash of the images", daemon=True) if hashed else None
        self._started = False

    def check(self, run: Path, config: Mapping[str, Any]) -> None:
        """Compare the images with those of a checkpoint.

        Args:
            run: the run folder, for messages.
            config: the checkpoint's config.json; that of version 0.1 has names and sizes only.

        Raises:
            InputError: for other images.
        """
        if config["data"] != self._data.fingerprint:
            raise InputError(
                f"{run} was trained on other data (fingerprint {config['data']}), not on {self._data.description}: "
                "resume with the same images, or choose another folder (--out)"
            )
        before = config.get("data_content", "")
        if config.get("data_identity") != self._data.identity and before:
            self._hash()
            if self._content != before:
                raise InputError(
                    f"{run} was trained on other data: names and sizes are those of {self._data.description}, but the "
                    "content is another one: resume with the same images, or choose another folder (--out)"
                )
        self._content = before

    def start(self) -> None:
        """Begin to hash the content, unless it is known."""
        if self._thread is not None and not self._content:
            self._started = True
            self._thread.start()

    def describe(self, wait: bool) -> dict[str, str]:
        """The entries of config.json.

        Args:
            wait: wait for the hash; otherwise for seconds only, after which `data_content` is empty.
        """
        if self._thread is not None and self._started:
            self._thread.join(None if wait else _PATIENCE)
        return {
            "data": self._data.fingerprint,
            "data_identity": self._data.identity,
            "data_content": self._content,
        }

    def _hash(self) -> None:
        self._content = self._data.content()
