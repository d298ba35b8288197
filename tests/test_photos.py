"""Training on photographs: the recipe, augmentation that does not leak, and what a run shows at its beginning."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from data_samples import encode, patch
from quarterarc.common.errors import InputError
from quarterarc.common.streams import Purpose, streams
from quarterarc.data import DataSpec, open_data
from quarterarc.networks import UNet
from quarterarc.storage.checkpoints import load
from quarterarc.storage.pictures import columns_of, contact_sheet, read_png
from quarterarc.training.api import train
from quarterarc.training.augmentation import PARAMETERS, augment, augmentation_share, draw_parameters
from quarterarc.training.beginning import Forecast
from quarterarc.training.recipe_text import read_recipe

SMALL = {
    "data.size": 16, "network.channels": 8, "training.batch": 4, "training.steps": 2, "training.sample_count": 8,
    "training.log_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photographs of several shapes: six of 4:3, three upright by EXIF, one gray, one transparent, one small."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        (folder / f"{number:02}.jpg").write_bytes(encode(patch(number, 48, 64), "JPEG"))
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(6, 9):
        (folder / f"{number:02}.jpg").write_bytes(encode(patch(number, 40, 60), "JPEG", exif=exif.tobytes()))
    (folder / "09.png").write_bytes(encode(patch(9)[..., 0]))
    clear = Image.fromarray(patch(10))
    clear.putalpha(100)
    (folder / "10.png").write_bytes(encode(clear))
    (folder / "11.png").write_bytes(encode(patch(11, 10, 10)))
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of the recipe, and its log."""
    run, lines = tmp_path_factory.mktemp("run") / "mine", []
    logger = logging.getLogger("quarterarc")
    handler, level = logging.Handler(), logger.level
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        train("photos", run, data=photos, fields=SMALL, device="cpu", progress=False)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return run, "\n".join(lines)


# --- the recipe --------------------------------------------------------------------------------------------------


def test_a_recipe_has_other_fields_on_an_nvidia_gpu() -> None:
    cpu, gpu = (read_recipe("photos", device=device) for device in ("cpu", "cuda:0"))
    assert gpu.training.batch > cpu.training.batch
    assert (cpu.training.precision, gpu.training.precision) == ("fp32", "bf16")
    given = read_recipe("photos", ["training.batch=8"], device="cuda")
    assert (given.training.batch, given.training.steps) == (8, gpu.training.steps)
    own = {"data": "x", "size": 8, "training": {"steps": 5, "batch": 2}, "cuda": {"training": {"steps": 9}}}
    assert read_recipe(own, device="cpu").training.steps == 5
    resolved = read_recipe(own, device="cuda")
    assert (resolved.training.steps, resolved.training.batch) == (9, 2)
    assert read_recipe(resolved.model_dump(), device="cpu") == resolved  # as a run records it
    with pytest.raises(InputError, match="unknown field"):
        read_recipe({**own, "cuda": {"training": {"stepz": 9}}}, device="cuda")
    with pytest.raises(InputError, match="unknown field '5'"):
        read_recipe({**own, "cuda": {5: 9}}, device="cuda")
    with pytest.raises(InputError, match="'cuda' is a section of fields"):
        read_recipe({**own, "cuda": 5})


def test_the_network_of_the_recipe_follows_the_size() -> None:
    for size in (8, 32, 64, 128, 256):
        recipe = read_recipe("photos", [f"data.size={size}"]).resolved()
        assert all(isinstance(resolution, int) and resolution <= 16 for resolution in recipe.network.attention)
        assert recipe.network.attention or size == 256  # where only the middle has attention


def test_lists_need_no_brackets_which_zsh_would_expand() -> None:
    recipe = read_recipe("photos", ["data.size=48,64", "data.range=0,4095", "optimizer.betas=0.9,0.99"])
    assert (recipe.data.size, recipe.data.range, recipe.optimizer.betas) == ((48, 64), (0, 4095), (0.9, 0.99))
    one = read_recipe("photos", ["network.attention=8", "network.multipliers=2", "data.size=8"])
    assert (one.network.attention, one.network.multipliers, one.data.size) == ((8,), (2,), 8)
    assert read_recipe("photos", ["data.crop=1,2,3,4"]).data.crop == (1, 2, 3, 4)
    assert read_recipe("photos", ["data.source=a,b"]).data.source == "a,b"
    with pytest.raises(InputError, match=r"training\.steps"):
        read_recipe("photos", ["training.steps=1,000"])


# --- augmentation ------------------------------------------------------------------------------------------------


def parameters(**moves: float) -> torch.Tensor:
    names = ("mirror", "scale", "cosine", "sine", "along", "across", "right", "down")
    return torch.tensor([[moves.get(name, 0.0) for name in names]], dtype=torch.float64)


def test_parameters_determine_the_movement() -> None:
    image = torch.from_numpy(patch(0, 32, 32).transpose(2, 0, 1).copy()).float()[None] / 127.5 - 1
    assert torch.equal(augment(image, parameters()), image)
    torch.testing.assert_close(augment(image, parameters(mirror=1)), image.flip(2), atol=1e-4, rtol=0)
    quarter = augment(image, parameters(cosine=-1, sine=1))  # float32 positions of a pixel, times steep edges
    assert min((quarter - image.rot90(turns, (2, 3))).abs().max() for turns in (1, 3)) < 1e-3
    # an eighth of the side per unit: 4 of 32 pixels
    torch.testing.assert_close(augment(image, parameters(right=1))[..., 4:24], image[..., 8:28], atol=1e-3, rtol=0)
    transposed = augment(image.mT, parameters(down=1)).mT
    torch.testing.assert_close(transposed, augment(image, parameters(right=1)), atol=1e-4, rtol=0)
    # 5 * 0.2 octaves: twice as wide (and half as high, which columns of one colour do not show)
    columns = image.mean(2, keepdim=True).expand_as(image)
    wider = nn.functional.interpolate(columns[..., 8:24], size=(32, 32), mode="bicubic", align_corners=False)
    assert (augment(columns, parameters(along=5)) - wider)[..., 4:-4].abs().mean() < 1e-3
    higher = augment(columns.mT, parameters(across=5)).mT
    torch.testing.assert_close(higher, augment(columns, parameters(along=5)), atol=1e-3, rtol=0)
    larger = augment(image, parameters(scale=5))  # 5 * 0.2 octaves: twice as large
    crop = nn.functional.interpolate(image[..., 8:24, 8:24], scale_factor=2, mode="bicubic", align_corners=False)
    assert (larger - crop)[..., 4:-4, 4:-4].abs().mean() < 1e-3
    wide = augment(image[..., :16, :], parameters(cosine=-2))  # half a turn of an image that is no square
    torch.testing.assert_close(wide, image[..., :16, :].flip(2, 3), atol=1e-3, rtol=0)


def test_each_movement_has_its_probability_and_belongs_to_the_example() -> None:
    drawn = draw_parameters(streams(Purpose.AUGMENTATION, 3, 7, range(4000)), 0.2)
    assert drawn.shape == (4000, PARAMETERS)
    shares = (drawn != 0).double().mean(0)
    # four standard deviations of a share of 4000 draws; half of the mirrors are the identity
    expected = torch.tensor([0.1, *[0.2] * 7], dtype=torch.float64)
    assert (shares - expected).abs().max() < 4 * math.sqrt(0.2 * 0.8 / 4000)
    assert torch.equal(draw_parameters(streams(Purpose.AUGMENTATION, 3, 7, [10, 5]), 0.2), drawn[[10, 5]])
    assert not draw_parameters(streams(Purpose.AUGMENTATION, 3, 7, range(100)), 0.0).any()


def test_an_image_that_is_not_moved_is_the_condition_of_sampling() -> None:
    network = UNet(1, 1, channels=8, multipliers=(1,), blocks=1, attention=(), augmentations=PARAMETERS)
    assert network.augmentation is not None
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.2)
    x, time = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0])
    assert torch.equal(network(x, time), network(x, time, augmentation=torch.zeros(2, PARAMETERS)))
    assert not torch.allclose(network(x, time), network(x, time, augmentation=torch.ones(2, PARAMETERS)))
    with pytest.raises(InputError, match="give 8 numbers per image"):
        network(x, time, augmentation=torch.zeros(2, 3))
    spanned = network.with_spans()
    assert spanned.augmentation is None
    assert torch.equal(spanned(x, time), network(x, time))
    with pytest.raises(InputError, match="an augmentation for a network without"):
        spanned(x, time, augmentation=torch.zeros(2, PARAMETERS))


def test_only_small_sets_are_augmented_by_themselves() -> None:
    recipe = read_recipe("photos")
    assert augmentation_share(recipe, 300) == augmentation_share(recipe, 5000) == 0.15
    assert augmentation_share(recipe, 5001) == augmentation_share(recipe, None) == 0
    assert augmentation_share(read_recipe("photos", ["data.augment=0.3"]), 10**6) == 0.3
    assert augmentation_share(read_recipe("digits"), 300) == 0
    own = {"data": {"source": "x", "size": 8, "augment": "auto"}, "network": "torch.nn:Identity"}
    assert augmentation_share(read_recipe(own), 300) == 0
    for wrong in (["network.name=torch.nn:Identity"], ["objective=flow-map"]):
        with pytest.raises(InputError, match=r"data.augment=0.3 is a condition of the U-Net, not of"):
            read_recipe({"data": "x", "size": 8}, ["data.augment=0.3", *wrong])


def test_an_augmented_run_learns_its_condition_and_resumes_with_the_same_bits(
    run: tuple[Path, str], photos: Path, tmp_path: Path
) -> None:
    first, log = run
    denoise = load(first)
    assert isinstance(denoise.network, UNet)
    assert denoise.network.config["augmentations"] == PARAMETERS
    assert "augmentation, with probability 0.15 per movement" in log
    train(
        "photos",
        tmp_path / "again",
        data=photos,
        fields={**SMALL, "training.checkpoint_every": 1},
        progress=False,
        device="cpu",
    )
    for step in (tmp_path / "again/checkpoints/step-00000002").iterdir():
        step.unlink()
    (tmp_path / "again/checkpoints/step-00000002").rmdir()
    train(None, tmp_path / "again", resume=True, progress=False, device="cpu")
    weights = [load_file(path / "checkpoints/step-00000002/model.safetensors") for path in (first, tmp_path / "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# --- what a run shows at its beginning ---------------------------------------------------------------------------


def test_a_run_describes_its_images_before_it_starts(run: tuple[Path, str], photos: Path) -> None:
    _, log = run
    for line in (
        f"folder {photos}: 12 images in memory",
        "4 sizes (height x width), from 10x10 to 48x64, most often 48x64 (6); resized to 16x16",
        "cropped to squares: 6 of 4:3, 3 of 2:3 (width:height)",
        "converted: 3 turned upright (EXIF), 1 gray read as RGB, 1 transparent over white, 1 enlarged, which blurs",
    ):
        assert line in log
    assert log.index("cropped to squares") < log.index("training in")


def test_stretching_is_mentioned_with_its_remedy(photos: Path) -> None:
    notes = open_data(DataSpec(source=str(photos), size=8, channels=1), progress=False).notes
    assert "stretched to squares: 6 of 4:3, 3 of 2:3 (width:height); data.crop=center crops them instead" in notes
    assert any("11 colour read as gray" in note for note in notes)
    assert open_data(DataSpec(source="digits", size=8, channels=1)).notes == ()  # nothing is done to them


def test_the_most_frequent_shapes_come_first_and_others_last(tmp_path: Path) -> None:
    for number in range(24):  # of shapes without a name, but for the first three; each of its own size
        size = (8 * (number + 4), 6 * (number + 4)) if number < 3 else (100 + number, 30)
        Image.new("RGB", size, (9 * number, 80, 80)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "99.png").write_bytes(b"this is no image")
    notes = "; ".join(open_data(DataSpec(source=str(tmp_path), size=8, crop="center", skip_bad=True)).notes)
    assert "cropped to squares: 3 of 4:3, 21 of other shapes (width:height)" in notes
    assert "24 sizes (height x width), from 24x32 to 30x123; resized to 8x8" in notes  # none of them is frequent
    assert "looked at" not in notes  # all were, and one that is skipped is named elsewhere


def test_the_training_images_are_shown_as_the_network_sees_them(run: tuple[Path, str]) -> None:
    sheet = read_png(run[0] / "training-images.png")
    assert sheet.shape == (3, 2 * 66 + 2, 4 * 66 + 2)  # 8 images of 16x16, enlarged four times, two rows
    assert sheet.float().std() > 20


def test_the_rows_of_a_contact_sheet_are_filled_evenly() -> None:
    columns = {count: columns_of(count) for count in (0, 1, 2, 4, 6, 8, 12, 18, 32, 50, 72)}
    assert columns == {0: 1, 1: 1, 2: 2, 4: 2, 6: 3, 8: 4, 12: 4, 18: 6, 32: 8, 50: 10, 72: 12}  # 3 + 1 of four is none
    for count in range(1, 200):
        rows = -(-count // columns_of(count))
        assert 0 <= rows * columns_of(count) - count < rows  # no more empty places than rows


def test_rows_of_a_contact_sheet_have_names() -> None:
    pixels = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 8, 8) * 10
    sheet = contact_sheet(pixels, rows=[[4], [0, 2]], names=["cat", "a very long name of a class of dogs"])
    plain = contact_sheet(pixels, rows=[[4], [0, 2]])
    width = plain.shape[2]
    assert torch.equal(sheet[:, :, -width:], plain)
    assert [int(plain[0, row, column]) for row, column in ((30, 30), (90, 30), (90, 90), (30, 90))] == [40, 0, 20, 255]
    names = sheet[0, :, :-width]
    assert (names[:66] < 128).any()
    assert (names[66:] < 128).any()
    assert (names[:66, :40] == 255).all()  # right-aligned
    assert contact_sheet(pixels.expand(5, 4, 8, 8), rows=[[0]], names=["x"])[3].min() == 0
    assert (contact_sheet(pixels.expand(5, 4, 8, 8), rows=[[0]], names=["x"])[3, :, :10] == 255).all()


def test_the_remaining_time_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quarterarc")
    clock = iter([0.0, *np.arange(100.0, 200.0, 2.0)])  # a first step of 100 s, then 2 s per step
    monkeypatch.setattr("quarterarc.training.beginning.time.perf_counter", lambda: next(clock))
    next(clock)
    forecast = Forecast(1806, 16)
    for step in range(1, 12):
        forecast.after(step)
    forecast = Forecast(6, 16)
    for step in range(1, 7):
        forecast.after(step)  # of a run that has ended nothing remains
    (message,) = caplog.messages
    assert message == "about 60 min for the remaining 1,800 steps: 2.0 s per step, 8 images per second"


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    done = cli("train", "photos", "--out", "run")
    assert done.returncode == 2
    assert "no such data: PHOTOS; give" in done.stderr
    assert not (tmp_path / "run").exists()
