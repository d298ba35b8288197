"""Scales: the papers' recipes train and sample on generated images, and test images are held out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.worlds import patches
from quarterarc.common.errors import InputError
from quarterarc.data.pixels import to_uint8
from quarterarc.evaluation.extractors import Extractor
from quarterarc.experiments.cells import quality
from quarterarc.experiments.flow_maps import few_evaluations
from quarterarc.experiments.lab import Lab
from quarterarc.experiments.measuring import measure
from quarterarc.experiments.run import describe_setting, run_experiment
from quarterarc.experiments.scales import Scale, scale
from quarterarc.experiments.zhang2023.ablation import DDIM, OURS
from quarterarc.grids import grid
from quarterarc.schedules import schedule as named_schedule
from quarterarc.storage.checkpoints import load
from quarterarc.training.recipe_text import read_recipe
from tools import make_patches


def write_images(folder: Path, count: int, height: int, width: int) -> Path:
    random = np.random.Generator(np.random.PCG64(0))
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


class Means(torch.nn.Module):
    """Features for tests: channel means, and the image averaged to 2x2 pixels."""

    kinds = ("pool", "spatial")

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        small = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255.0, 2)
        return {"pool": small.mean((2, 3)), "spatial": small.flatten(1)}


def shrunk(full: Scale) -> Scale:
    """The same data, schedule, objective and levels, with 8 channels and two training steps of two images."""
    recipe = full.recipe
    network = recipe.network.model_copy(update={"channels": 8, "blocks": 1, "attention": (), "dropout": 0.0})
    training = recipe.training.model_copy(
        update={"steps": 2, "batch": 2, "sample_count": 1, "compile": False, "precision": "fp32"}
    )
    data = recipe.data.model_copy(update={"limit": None})
    small = recipe.model_copy(update={"network": network, "training": training, "data": data})
    metrics = tuple(metric for metric in full.metrics if metric != "is")  # the features of these tests have no classes
    return replace(full, recipe=small, images=4, batch=4, metrics=metrics)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("cifar10", (32, 32)), ("cifar10-short", (32, 32)), ("celeba64", (218, 178)), ("church256", (300, 256))],
)
def test_the_papers_scales_train_and_sample(name: str, shape: tuple[int, int], tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 6, *shape)
    small = shrunk(scale(name, data=str(folder)))
    lab = Lab(small, tmp_path / "cache", progress=False)
    lab.__dict__["extractor"] = Extractor.of("means", Means())
    side = scale(name).recipe.data.size
    for row in (DDIM, OURS) if name == "cifar10" else (OURS,):
        values = measure(lab, row.cell(small, 2, 0))
        assert values["nfe"] == 2
        assert set(small.metrics) <= set(values)
        denoise = load(row.arm.folder(small, 0, lab.cache))
        assert denoise.shape == (3, side, side)


def test_the_patches_of_the_scale_patches16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are those of the benchmarks, by photograph; without them the error names the command that writes them."""
    with pytest.raises(InputError, match=r"python -m tools.make_patches --out patches16"):
        scale("patches16", features="pixels").training_data()
    missing = Lab(scale("patches16", features="pixels"), tmp_path / "cache", progress=False)
    with pytest.raises(InputError, match=r"python -m tools.make_patches --out patches16"):
        run_experiment(few_evaluations.FEW_EVALUATIONS, missing, (0,), tmp_path / "out")
    assert not any(tmp_path.iterdir())
    folder = tmp_path / "patches"
    make_patches.main(["--out", str(folder), "--count", "6"])
    assert "6 patches" in capsys.readouterr().out
    small = shrunk(scale("patches16", data=str(folder), features="pixels"))
    data = small.training_data()
    assert (data.count, data.channels, data.height, data.width) == (6, 3, 16, 16)
    order = [0, 2, 4, 1, 3, 5]  # one photograph after the other
    assert torch.equal(data.batch(range(6)).images, to_uint8(patches(16, 6))[order])
    with pytest.raises(SystemExit):
        make_patches.main(["--out", str(folder)])
    lab = Lab(small, tmp_path / "cache", progress=False)
    values = measure(lab, few_evaluations.DISTILLED.cell(small, 1, 0))
    assert values["nfe"] == 1
    assert values["fid"] > 0.0


def test_test_images_are_the_images_that_no_arm_is_trained_on() -> None:
    digits = scale("digits")
    data, numbers = digits.test_images() or pytest.fail("no test images")
    assert numbers == range(1500, 1797)
    assert data.count == 1797
    assert digits.training_data().count == 1500
    whole = digits.recipe.data.model_copy(update={"limit": None})
    assert replace(digits, recipe=digits.recipe.model_copy(update={"data": whole})).test_images() is None


def test_cells_on_the_grid_of_ddims_code_keep_their_recorded_name_where_it_has_as_many_steps_as_requested() -> None:
    digits = scale("digits")
    for steps in (1, 10, 16, 20, 50, 100, 300, 1000):
        own = len(grid("uniform", steps, schedule=named_schedule("arc", 1000))) - 1
        recorded = quality(digits, DDIM.arm, 0, "ddim", steps, grid="uniform")["grid"]
        assert recorded == ("leading" if own == steps else "uniform")
        # the angles that cells with this name had: k = T // steps, from 1 + k (steps - 1)
        if recorded == "leading":
            times = named_schedule("arc", 1000).time(grid("uniform", steps, schedule=named_schedule("arc", 1000)))
            expected = [1 + (1000 // steps) * place for place in reversed(range(steps))]
            assert times.tolist() == pytest.approx([*expected, 0])


def test_the_setting_names_the_network_of_the_scale() -> None:
    digits = scale("digits")
    assert "the network (a U-Net with 16 base channels" in describe_setting(digits)
    other = read_recipe(digits.recipe, ["network.name=my_module:Net", "network.arguments.width=8"])
    text = describe_setting(replace(digits, recipe=other))
    assert "the network ('my_module:Net' with the arguments {'width': 8})" in text
    assert "U-Net" not in text
