"""What other platforms lack: Windows flushes no folders and no files that are open for reading, MPS has no float64."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import quarterarc as qa
from quarterarc.common import devices
from quarterarc.common.signals import sigint_blocked
from quarterarc.data import open_data
from quarterarc.denoiser import Denoiser
from quarterarc.heads import head
from quarterarc.schedules import schedule
from quarterarc.storage import files, temporary
from quarterarc.storage.files import replace_file, replace_folder
from quarterarc.training.batches import Batches
from quarterarc.training.learner import Learner
from quarterarc.training.network import recipe_network
from quarterarc.training.recipe_text import read_recipe

META = torch.device("meta")


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Windows' rules for `os.open` and `os.fsync`; the names of the files that were flushed."""
    flushed = list[str]()
    really_open, really_flush = os.open, os.fsync

    def opened(path: str | Path, flags: int, *further: int, **named: Any) -> int:
        if os.path.isdir(path) and flags & os.O_ACCMODE == os.O_RDONLY:
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, flags, *further, **named)

    def flush(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        flushed.append(os.readlink(f"/proc/self/fd/{handle}"))
        really_flush(handle)

    monkeypatch.setattr(files, "_WINDOWS", True)
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", flush)
    return flushed


def test_files_and_folders_are_written_on_windows(windows: list[str], tmp_path: Path) -> None:
    with replace_file(tmp_path / "a.json") as beside:
        beside.write_text("{}")
    with replace_folder(tmp_path / "folder") as beside:
        (beside / "b.json").write_text("[1]")
    assert json.loads((tmp_path / "folder" / "b.json").read_text()) == [1]
    assert len(windows) == 2  # the two files, and no folder
    with pytest.raises(OSError, match="Bad file descriptor"):  # the premise
        os.fsync(os.open(tmp_path / "a.json", os.O_RDONLY))


def test_a_run_is_trained_and_sampled_on_windows(windows: list[str], tmp_path: Path, tiny: Sequence[str]) -> None:
    qa.train(read_recipe("digits", tiny), tmp_path / "run", progress=False)
    assert qa.generate(qa.load(tmp_path / "run"), [0], steps=1).shape == (1, 1, 8, 8)
    assert any(name.endswith("model.safetensors") for name in windows)


@pytest.mark.parametrize(
    ("handle", "waited", "error", "alive"),
    [(7, 0x102, 0, True), (7, 0, 0, False), (None, 0, 5, True), (None, 0, 87, False)],
)
def test_a_process_is_looked_up_on_windows_without_a_signal(
    handle: int | None, waited: int, error: int, alive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`os.kill(process, 0)` is Ctrl-C there."""
    closed = list[object]()

    class Call:
        def __init__(self, result: object) -> None:
            self.result = result

        def __call__(self, *arguments: object) -> object:
            closed.extend(arguments if self.result == "closed" else ())
            return self.result

    kernel = SimpleNamespace(OpenProcess=Call(handle), WaitForSingleObject=Call(waited), CloseHandle=Call("closed"))
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: error, raising=False)
    assert temporary._is_alive_on_windows(42) is alive
    assert len(closed) == (handle is not None)


def test_without_masks_of_signals_processes_are_started_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "pthread_sigmask")
    with sigint_blocked():
        pass


class WithoutFloat64(TorchDispatchMode):
    """Raises for a tensor of float64 on the device `meta`, as MPS does."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.device == META and tensor.dtype == torch.float64:
                raise TypeError(f"{function}: float64 on MPS")
        return result


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> WithoutFloat64:
    """The device `meta` in place of MPS."""
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", ["mps", "meta"])
    return WithoutFloat64()


@pytest.mark.parametrize("settings", [("head=both",), ("head=noise", "objective=noise"), ("objective=flow-map",)])
def test_a_training_step_needs_no_float64_on_the_device(
    settings: tuple[str, ...], mps: WithoutFloat64, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe("digits", [*tiny, "data.labels=true", *settings]).resolved()
    adam = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *a, **options: adam(*a, **{**options, "fused": False}))
    accelerator: Any = SimpleNamespace(
        device=META, is_main_process=True, num_processes=1, process_index=0,
        prepare_model=lambda network: network, no_sync=lambda network: nullcontext(),
        backward=lambda loss: loss.backward(),
    )  # fmt: skip
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # not known for `meta`
    table = schedule("arc", recipe.schedule.steps)
    chosen = head(recipe.head, table)
    network = recipe_network(recipe, 1, chosen.channels(1), 10).to(META)
    learner = Learner(recipe, Denoiser(network, table, chosen, (1, 8, 8), 10, maps=recipe.is_map), accelerator, False)
    batches = Batches(open_data(recipe.data, META, progress=False, seed=0), recipe, accelerator, table.steps - 1)
    with mps:
        learner.step(batches.of_step(0), 0)
        with pytest.raises(TypeError, match="float64 on MPS"):  # the premise
            torch.zeros(1, device=META).double()


@pytest.mark.parametrize("name", ["multistep", "ddpm", "ddim", "rotation", "cold", "heun", "rk4", "midpoint", "euler"])
def test_a_sampler_needs_no_float64_on_the_device(name: str, mps: WithoutFloat64) -> None:
    table = schedule("arc", 100)
    denoise = Denoiser(lambda x, time, labels: x + spread_like(time, x), table, head("velocity", table))
    start = torch.empty(3, 1, 8, 8, device=META)
    with mps:
        assert qa.sample(denoise, start, name, 3, seeds=range(3)).images.dtype == torch.float32


def spread_like(time: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return time.to(x).reshape(-1, 1, 1, 1)
