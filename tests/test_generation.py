"""Images from seeds: the same whatever is made beside them, and folders that continue where they stopped."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import quarterarc as qa
from quarterarc.common.errors import InputError
from quarterarc.common.streams import Purpose, normal, stream
from quarterarc.common.text import ranges
from quarterarc.sampling.folders import write_samples
from quarterarc.sampling.plans import Sampling
from quarterarc.storage.checkpoints import load
from quarterarc.storage.pictures import contact_sheet, read_png, write_png


def test_noise_is_its_seeds_own():
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


@pytest.mark.parametrize("sampler", ["heun", "ddpm"])
def test_an_image_depends_on_its_seed_alone(tiny_run, sampler):
    denoise = load(tiny_run)
    together = qa.to_uint8(qa.generate(denoise, range(8), sampler, 4, batch_size=8)).int()
    alone = qa.to_uint8(qa.generate(denoise, [5, 2, 7, 0], sampler, 4, batch_size=3)).int()
    difference = (together[[5, 2, 7, 0]] - alone).abs()
    # the network may round differently in another batch size: a level, in one pixel of a thousand
    assert difference.max() <= 1
    assert (difference > 0).float().mean() <= 1e-3


def test_a_bare_function_generates_when_told_the_shape():
    world = qa.GaussianData(torch.full((1, 2, 2), 0.25), 0.01)

    def bare(x, angle):
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


def test_a_sample_folder_continues_and_says_how_it_was_made(tiny_run, tmp_path):
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
        a, b = read_png(tmp_path / "whole" / name).int(), read_png(tmp_path / "parts" / name).int()
        assert (a - b).abs().max() <= 1
    assert (tmp_path / "whole" / "contact-sheet.png").is_file()
    assert not list(tmp_path.rglob(".*"))


def test_a_folder_of_other_samples_is_refused(tiny_run, tmp_path):
    denoise = load(tiny_run)
    write_samples(denoise, tmp_path, range(2), Sampling("euler", 3))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="angles, steps"):
        write_samples(denoise, tmp_path, range(2), Sampling("euler", 4))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "samples.json").unlink()
    with pytest.raises(InputError, match=r"no samples\.json"):
        write_samples(denoise, tmp_path, range(2), Sampling("euler", 3))


def test_a_refusal_on_the_way_leaves_nothing_and_blocks_nothing(tiny_run, tmp_path):
    """What a sampler refuses only once it has begun; and a command that was killed before its first image."""
    denoise, out = load(tiny_run), tmp_path / "out"
    with pytest.raises(InputError, match=r"the variance .learned. needs a network"):
        write_samples(denoise, out, range(2), Sampling("ddpm", 3, options={"variance": "learned"}))
    assert not out.exists()
    with pytest.raises(InputError, match="the image of seed 5 has pixels that are NaN or infinite"):
        write_samples(replace(denoise, network=nan_network), out, [5], Sampling("euler", 3))
    assert not out.exists()
    out.mkdir()
    (out / "samples.json").write_text("[]")
    made = write_samples(denoise, out, range(2), Sampling("euler", 3))
    assert made is not None
    assert made["count"] == 2
    (out / "samples.json").write_text("[]")
    with pytest.raises(InputError, match="does not hold the settings"):
        write_samples(denoise, out, range(2), Sampling("euler", 3))


def nan_network(x, time, labels=None):
    return torch.full_like(x, float("nan")).repeat(1, 2, 1, 1)


def test_two_processes_share_the_seeds(tiny_run, tmp_path):
    arguments = ["sample", str(tiny_run), "--seeds", "0-8", "--sampler", "ddpm", "--steps", "4", "--batch-size", "2"]
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--mixed_precision=no",
              f"--main_process_port={29500 + os.getpid() % 1000}"]  # fmt: skip
    for start, out in (([], "one"), (launch, "two")):
        command = [sys.executable, *start, "-m", "quarterarc", *arguments, "--out", str(tmp_path / out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / out / "samples.json").read_text()) for out in ("one", "two"))
    assert one["count"] == two["count"] == 9
    for seed in range(9):
        a, b = (read_png(tmp_path / out / f"{seed:06d}.png").int() for out in ("one", "two"))
        assert (a - b).abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_picture_survives_its_file(tmp_path, channels):
    pixels = torch.randint(0, 256, (channels, 6, 9), dtype=torch.uint8)
    write_png(tmp_path / "picture.png", pixels)
    assert torch.equal(read_png(tmp_path / "picture.png"), pixels)


def test_a_grid_shows_every_image_enlarged():
    pixels = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 2, 3).contiguous()
    grid = contact_sheet(pixels, columns=2, size=6, gap=1)
    assert grid.shape == (1, 3 * (4 + 1) + 1, 2 * (6 + 1) + 1)
    for place in range(5):
        row, column = divmod(place, 2)
        cell = grid[0, 1 + row * 5 : 5 + row * 5, 1 + column * 7 : 7 + column * 7]
        assert torch.equal(cell, torch.full((4, 6), place, dtype=torch.uint8))


def test_numbers_in_short():
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert ranges([]) == ""
