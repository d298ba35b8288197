"""Checkpoints: what is loaded is what was saved, or saving raises."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from quarterarc import Denoiser, schedule
from quarterarc.arc import Angle
from quarterarc.common.devices import pick_device
from quarterarc.common.errors import InputError
from quarterarc.estimate import Estimate
from quarterarc.heads import Both, Head, LearnedVariance, Velocity, head
from quarterarc.networks import UNet, build_network
from quarterarc.storage.checkpoints import load, save
from quarterarc.storage.weights import save_tensors
from quarterarc.training.network import check_network

SCHEDULE = schedule("arc", 10)
SMALL = {"in_channels": 1, "out_channels": 1, "channels": 8, "multipliers": (1,), "blocks": 1, "attention": ()}


class Negative(UNet):
    """A U-Net whose output has the other sign."""

    def forward(self, x: Tensor, time: Tensor | float, *rest: Any) -> Tensor:
        return -super().forward(x, time, *rest)


class Scaled(UNet):
    """A U-Net with an argument of its own."""

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__(1, 1, 8, (1,), 1, ())
        self.scale = scale


class OneTooMany(UNet):
    """A U-Net whose output does not fit its head."""

    def forward(self, x: Tensor, time: Tensor | float, *rest: Any) -> Tensor:
        return torch.cat([x, x], 1)


class Own(Velocity):
    """A head that inherits the registered name of its base class."""

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Estimate:
        return super().read(-output, x, angle)


def test_a_subclass_of_the_unet_is_saved_and_loaded_as_itself(tmp_path: Path) -> None:
    network = Negative(1, 1, 8, (1,), 1, ())
    built = build_network({"name": f"{__name__}:Negative", "arguments": SMALL})
    for number, module in enumerate((network, built)):
        denoise = Denoiser(module, SCHEDULE, head("velocity", SCHEDULE), (1, 8, 8))
        loaded = load(save(denoise, tmp_path / str(number)))
        assert type(loaded.network) is Negative
        description = json.loads((tmp_path / str(number) / "config.json").read_text())["denoiser"]["network"]
        assert description["name"] == f"{__name__}:Negative"


def test_a_subclass_of_the_unet_with_unknown_arguments_cannot_be_saved(tmp_path: Path) -> None:
    denoise = Denoiser(Scaled(3.0), SCHEDULE, head("velocity", SCHEDULE), (1, 8, 8))
    with pytest.raises(InputError, match="the arguments of this Scaled are not known"):
        save(denoise, tmp_path / "scaled")
    network = build_network({"name": f"{__name__}:Scaled", "arguments": {"scale": 3.0}})
    loaded = load(save(Denoiser(network, SCHEDULE, head("velocity", SCHEDULE), (1, 8, 8)), tmp_path / "built"))
    assert isinstance(loaded.network, Scaled)
    assert loaded.network.scale == 3.0


def test_a_subclass_of_the_unet_is_checked_before_training() -> None:
    with pytest.raises(InputError, match=r"returns shape \(2, 2, 8, 8\)"):
        check_network(OneTooMany(1, 1, 8, (1,), 1, ()), "mine", (1, 8, 8), 1, None)


@pytest.mark.parametrize("own", [Own(SCHEDULE), LearnedVariance(Own(SCHEDULE))])
def test_a_head_with_the_name_of_another_cannot_be_saved(own: Head, tmp_path: Path) -> None:
    network = UNet(1, own.channels(1), 8, (1,), 1, ())
    with pytest.raises(InputError, match=f"its head is a Own, .* name = '{__name__}:Own'") as raised:
        save(Denoiser(network, SCHEDULE, own, (1, 8, 8)), tmp_path / "saved")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", ["both", "both+variance", f"{__name__}:Own", f"{__name__}:Own+variance"])
def test_a_head_of_its_own_name_is_saved_and_loaded_as_itself(name: str, tmp_path: Path) -> None:
    reader = head(name, SCHEDULE)
    network = UNet(1, reader.channels(1), 8, (1,), 1, ())
    again = load(save(Denoiser(network, SCHEDULE, reader, (1, 8, 8)), tmp_path / "saved")).head
    inner = again.inner if isinstance(again, LearnedVariance) else again
    assert (again.name, type(inner)) == (name, Both if name.startswith("both") else Own)


def test_the_device_of_a_loaded_network_is_a_name_or_a_device(tiny_run: Path) -> None:
    assert load(tiny_run, device="auto").device == pick_device()
    assert load(tiny_run).device == load(tiny_run, torch.device("cpu")).device == torch.device("cpu")
    with pytest.raises(InputError, match="device 'nothing'") as raised:
        load(tiny_run, device="nothing")
    assert "\n" not in str(raised.value)


def test_a_full_disk_is_an_error_with_its_number_and_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        save_tensors({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "a.safetensors"))
