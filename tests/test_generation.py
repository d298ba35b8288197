"""Images from seeds: independent of the batch and the number of processes; sample folders that can be resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import quarterarc as qa
from conftest import Distributed
from quarterarc.cli import main
from quarterarc.common.errors import InputError
from quarterarc.common.streams import Purpose, normal, stream
from quarterarc.common.text import ranges
from quarterarc.evaluation.image_files import open_set
from quarterarc.evaluation.sets import SampledSet
from quarterarc.sampling.folders import SHEETS, write_samples
from quarterarc.sampling.plans import Sampling
from quarterarc.storage.checkpoints import load
from quarterarc.storage.pictures import contact_sheet, read_png, write_png


def test_the_noise_of_an_image_depends_on_its_seed_alone() -> None:
    noise = qa.noise(range(6), (3, 5, 7))
    assert noise.shape == (6, 3, 5, 7)
    assert torch.equal(noise[[4, 1]], qa.noise([4, 1], (3, 5, 7)))
    assert len({tuple(row) for row in noise.flatten(1)[:, :4].tolist()}) == 6
    many = qa.noise(range(4000), (1, 4, 4)).double()
    # mean and variance of 64,000 normals, within five standard errors
    assert abs(many.mean()) < 5 / many.numel() ** 0.5
    assert abs(many.var() - 1) < 5 * (2 / many.numel()) ** 0.5
    steps = normal([stream(seed, Purpose.STEPS) for seed in range(4000)], (1, 4, 4)).double()
    assert abs((many * steps).mean()) < 5 / many.numel() ** 0.5


def by_label(x: Tensor, angle: float | Tensor, labels: Tensor | None = None) -> qa.Estimate:
    """A denoiser of uniform images whose level is the label, 8-bit level 10 * label."""
    assert labels is not None
    image = (labels.to(x) * 10 / 127.5 - 1).reshape(-1, 1, 1, 1).expand_as(x)
    at = torch.as_tensor(angle, dtype=x.dtype)
    return qa.Estimate(image, (x - image * at.cos()) / at.sin())


by_label.traits = qa.Traits(shape=(1, 4, 4), classes=5, unlabelled=False)  # type: ignore[attr-defined]


def levels(out: Path) -> dict[int, int]:
    """The label of each image of a folder, from its pixels."""
    return {int(path.stem): int(read_png(path).flatten()[0]) // 10 for path in out.glob("0*.png")}


def test_labels_are_used_in_turn_over_the_images_of_the_request(tmp_path: Path) -> None:
    """Also over even seeds, and in a folder that is continued: there an image keeps its recorded label."""
    out, expected = tmp_path / "made", {0: 1, 2: 3, 4: 1, 6: 3}
    write_samples(by_label, out, [0, 2, 4, 6], labels=[1, 3], progress=False)
    assert levels(out) == expected
    assert json.loads((out / "samples.json").read_text())["image_labels"] == {str(s): n for s, n in expected.items()}
    (out / "000004.png").unlink()
    write_samples(by_label, out, [0, 2, 4, 6], labels=[1, 3], batch_size=1, progress=False)
    assert levels(out) == expected
    write_samples(by_label, out, [0, 2, 4, 6, 8], labels=[1, 3], progress=False)
    assert levels(out) == {**expected, 8: 1}
    with pytest.raises(InputError, match="seed 4 with the label 1, not 3"):
        write_samples(by_label, out, [0, 4], labels=[1, 3], progress=False)
    assert levels(out) == {**expected, 8: 1}
    made = list(SampledSet(by_label, [0, 2, 4, 6], labels=[1, 3]).batches(3, lambda batch: True))
    assert [int(image.flatten()[0]) // 10 for _, images in made for image in images] == [1, 3, 1, 3]
    with pytest.raises(InputError, match="list of labels is empty"):
        write_samples(by_label, tmp_path / "none", [0], labels=[], progress=False)


def test_a_folder_of_version_0_1_has_its_labels_by_seed(tmp_path: Path) -> None:
    """A request that gives an image another label than the file has is an error; the others continue the folder."""
    out = tmp_path / "made"
    write_samples(by_label, out, [0, 1, 2], labels=[1, 3], progress=False)
    about = json.loads((out / "samples.json").read_text())
    del about["image_labels"]
    (out / "samples.json").write_text(json.dumps(about))
    write_samples(by_label, out, [0, 1, 2, 3], labels=[1, 3], progress=False)
    assert levels(out) == {0: 1, 1: 3, 2: 1, 3: 3}


def test_an_image_with_nan_is_an_error_that_names_its_seed(tiny_run: Path) -> None:
    denoise = load(tiny_run)
    assert isinstance(denoise.network, torch.nn.Module)
    next(denoise.network.parameters()).data.view(-1)[0] = float("nan")
    with pytest.raises(InputError, match="image of seed 5 has pixels that are NaN"):
        qa.generate(denoise, [5, 6], steps=2, progress=False)


@pytest.mark.parametrize("sampler", ["heun", "ddpm"])
def test_an_image_depends_on_its_seed_alone(tiny_run: Path, sampler: str) -> None:
    denoise = load(tiny_run)
    together = qa.to_uint8(qa.generate(denoise, range(8), sampler, 4, batch_size=8)).int()
    alone = qa.to_uint8(qa.generate(denoise, [5, 2, 7, 0], sampler, 4, batch_size=3)).int()
    difference = (together[[5, 2, 7, 0]] - alone).abs()
    # the network may round differently for another batch size: one level, in one pixel of a thousand
    assert difference.max() <= 1
    assert (difference > 0).float().mean() <= 1e-3


def test_a_bare_function_generates_images_of_a_given_shape() -> None:
    world = qa.GaussianData(torch.full((1, 2, 2), 0.25), 0.01)

    def bare(x: Tensor, angle: float) -> qa.Estimate:
        return world(x, angle)

    images = qa.generate(bare, range(5), "rotation", 20, shape=(1, 2, 2), batch_size=2)
    assert images.shape == (5, 1, 2, 2)
    assert (images.mean() - 0.25).abs() < 0.2
    with pytest.raises(InputError, match="give shape"):
        qa.generate(bare, range(5))
    with pytest.raises(InputError, match="batch_size"):
        qa.generate(world, range(5), batch_size=0)
    with pytest.raises(InputError, match="got 5 seeds but 1 label"):
        qa.generate(world, range(5), labels=[1])


def test_a_sample_folder_is_resumed_and_holds_its_settings(tiny_run: Path, tmp_path: Path) -> None:
    denoise = load(tiny_run)
    whole = write_samples(denoise, tmp_path / "whole", range(7), Sampling("euler", 3), batch_size=4)
    assert whole is not None
    assert whole["nfe"] == 3
    assert whole["seeds"] == "0-6"
    assert whole["complete"] is True
    write_samples(denoise, tmp_path / "parts", [1, 4], Sampling("euler", 3))
    stamp = (tmp_path / "parts" / "000004.png").stat().st_mtime_ns
    about = write_samples(denoise, tmp_path / "parts", range(7), Sampling("euler", 3), batch_size=4)
    assert (tmp_path / "parts" / "000004.png").stat().st_mtime_ns == stamp
    assert about is not None
    assert {**about, "images_per_second": 0} == {**whole, "images_per_second": 0}
    for seed in range(7):
        name = f"{seed:06d}.png"
        expected, resumed = (read_png(tmp_path / out / name).int() for out in ("whole", "parts"))
        assert (expected - resumed).abs().max() <= 1
    assert (tmp_path / "whole" / "contact-sheet.png").is_file()
    assert {path.name for path in tmp_path.rglob(".*")} == {".lock"}


def test_a_folder_of_other_samples_raises_and_is_not_changed(tiny_run: Path, tmp_path: Path) -> None:
    denoise = load(tiny_run)
    write_samples(denoise, tmp_path, range(2), Sampling("euler", 3))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="angles, steps"):
        write_samples(denoise, tmp_path, range(2), Sampling("euler", 4))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "samples.json").unlink()
    with pytest.raises(InputError, match=r"no samples\.json"):
        write_samples(denoise, tmp_path, range(2), Sampling("euler", 3))


def test_an_error_before_the_first_image_leaves_no_folder_behind(tiny_run: Path, tmp_path: Path) -> None:
    """An error in the first step, and an interruption before the first image."""
    denoise, out = load(tiny_run), tmp_path / "out"
    with pytest.raises(InputError, match=r"the variance .learned. needs a network"):
        write_samples(denoise, out, range(2), Sampling("ddpm", 3, options={"variance": "learned"}))
    assert not out.exists()
    with pytest.raises(InputError, match="the image of seed 5 has pixels that are NaN or infinite"):
        write_samples(replace(denoise, network=nan_network), out, [5], Sampling("euler", 3))
    assert not out.exists()
    out.mkdir()
    (out / "samples.json").write_text("[]")
    about = write_samples(denoise, out, range(2), Sampling("euler", 3))
    assert about is not None
    assert about["count"] == 2
    (out / "samples.json").write_text("[]")
    with pytest.raises(InputError, match="does not hold the settings"):
        write_samples(denoise, out, range(2), Sampling("euler", 3))


def nan_network(x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
    return torch.full_like(x, float("nan")).repeat(1, 2, 1, 1)


@pytest.mark.parametrize("use_cpu", [True, False], ids=["ACCELERATE_USE_CPU", "plain torchrun"])
def test_two_processes_share_the_seeds(tiny_run: Path, tmp_path: Path, distributed: Distributed, use_cpu: bool) -> None:
    arguments = ["sample", str(tiny_run), "--seeds", "0-8", "--sampler", "ddpm", "--steps", "4", "--batch-size", "2"]
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    done = distributed(*arguments, "--out", tmp_path / "two", use_cpu=use_cpu)
    assert done.stdout.startswith("9 images, 4 network evaluations per image")
    for out in ("one", "two"):
        assert json.loads((tmp_path / out / "samples.json").read_text())["count"] == 9
    for seed in range(9):
        alone, shared = (read_png(tmp_path / out / f"{seed:06d}.png").int() for out in ("one", "two"))
        assert (alone - shared).abs().max() <= 1


def test_a_folder_that_a_process_is_filling_takes_no_other_samples(tiny_run: Path, tmp_path: Path) -> None:
    """The settings are recorded before the first image, and a second process raises before it writes anything."""
    denoise, errors = load(tiny_run), list[str]()

    def second(x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        if not errors:
            assert json.loads((tmp_path / "samples.json").read_text())["sampler"] == "euler"
            before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
            with pytest.raises(InputError) as error:
                write_samples(load(tiny_run), tmp_path, range(4), Sampling("ddim", 2))
            errors.append(str(error.value))
            assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        return denoise.network(x, time)

    write_samples(replace(denoise, network=second), tmp_path, range(4), Sampling("euler", 2))
    assert errors == [
        f"another process is writing samples in {tmp_path}: wait for it, or choose another folder (--out)"
    ]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_file_keeps_the_pixels(tmp_path: Path, channels: int) -> None:
    pixels = torch.randint(0, 256, (channels, 6, 9), dtype=torch.uint8)
    write_png(tmp_path / "picture.png", pixels)
    assert torch.equal(read_png(tmp_path / "picture.png"), pixels)


def test_a_contact_sheet_shows_every_image_enlarged() -> None:
    pixels = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 2, 3).contiguous()
    sheet = contact_sheet(pixels, columns=2, size=6, gap=1)
    assert sheet.shape == (1, 3 * (4 + 1) + 1, 2 * (6 + 1) + 1)
    for place in range(5):
        row, column = divmod(place, 2)
        cell = sheet[0, 1 + row * 5 : 5 + row * 5, 1 + column * 7 : 7 + column * 7]
        assert torch.equal(cell, torch.full((4, 6), place, dtype=torch.uint8))


def test_ranges_join_consecutive_numbers() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert ranges([]) == ""


def test_settings_stored_under_an_old_option_name_are_the_same_settings(tiny_run: Path, tmp_path: Path) -> None:
    denoise, request = load(tiny_run), Sampling("ddim", 3, options={"eta": 0.5})
    write_samples(denoise, tmp_path, range(2), request)
    path = tmp_path / "samples.json"
    path.write_text(path.read_text().replace('"eta"', '"churn"'))
    about = write_samples(denoise, tmp_path, range(3), request)
    assert about is not None
    assert about["count"] == 3
    assert about["options"] == {"eta": 0.5}


@pytest.mark.parametrize("name", SHEETS)
def test_the_contact_sheet_of_a_sample_folder_is_not_evaluated(tiny_run: Path, tmp_path: Path, name: str) -> None:
    """Under its name, and under its name in version 0.1."""
    write_samples(load(tiny_run), tmp_path, range(3), Sampling("euler", 3))
    (tmp_path / "contact-sheet.png").rename(tmp_path / name)
    assert open_set(tmp_path).count == 3


def test_labels_are_accepted_as_list_tensor_and_one_number() -> None:
    table = qa.schedule("arc", 10)

    def network(x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        return x * labels[:, None, None, None]

    denoise = qa.Denoiser(network, table, qa.head("velocity", table), (1, 2, 2), classes=5)
    by_list = qa.generate(denoise, range(4), "euler", 2, labels=[3] * 4, progress=False)
    for labels in (3, torch.full((4,), 3)):
        assert torch.equal(qa.generate(denoise, range(4), "euler", 2, labels=labels, progress=False), by_list)
    start = qa.noise(range(4), (1, 2, 2))
    assert torch.equal(qa.sample(denoise, start, "euler", 2, labels=[3] * 4).images, by_list)
    for wrong, message in (
        ([0.5] * 4, "labels are whole numbers"),
        ([[3]] * 4, "labels are whole numbers"),
        (["cat"] * 4, "the label 'cat': the model's classes have no names"),
    ):
        with pytest.raises(InputError, match=message):
            qa.sample(denoise, start, "euler", 2, labels=wrong)  # type: ignore[arg-type]
