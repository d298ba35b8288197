"""Scales: on which images an experiment runs, with which network, and how much it measures.

Everything that arms share is decided here, once: data, network, optimiser, images seen, and evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..common.errors import InputError, unknown_name
from ..data import DataSpec, ImageData, open_data
from ..training.recipe import Recipe, read_recipe

__all__ = ["CLASSIFIER", "SCALES", "Scale", "scale"]

CLASSIFIER = "classifier"
"""Features of a small network that is trained on the scale's own labelled images, see `experiments.classifier`."""


@dataclass(frozen=True)
class Scale:
    """What all arms of an experiment share, and how much is measured.

    Attributes:
        name: how results call it.
        recipe: what an arm changes in its own point only.
        features: an extractor's name, or `CLASSIFIER`.
        metrics: of `quarterarc.evaluation`, that the features can give.
        images: how many images are made for each measurement.
        few: how many where a trajectory takes every step of the schedule.
        steps: the numbers of steps that tables have, those below the schedule's own.
        likelihood_images: how many images bits a dimension are of, of training and of test images each.
        terms: how many terms of the bound an image draws; None for all.
        shown: how many images a picture holds.
        batch: images at once.
        data_hint: what to download and where to put it, for when it is not there.
    """

    name: str
    recipe: Recipe
    features: str = "inception"
    metrics: tuple[str, ...] = ("fid", "sfid", "precision", "recall")
    images: int = 50_000
    few: int = 50_000
    steps: tuple[int, ...] = (10, 16, 20, 50, 100)
    likelihood_images: int = 1000
    terms: int | None = None
    shown: int = 32
    batch: int = 250
    data_hint: str = "give --data PATH: a folder of images, a parquet file, or another source of `quarterarc train`"

    @property
    def all_steps(self) -> int:
        """T, the number of steps of the schedule."""
        return self.recipe.schedule.steps

    def at(self, *steps: int) -> tuple[int, ...]:
        """Those numbers of steps that lie below T; half of T if none does."""
        return tuple(each for each in steps if each < self.all_steps) or (max(1, self.all_steps // 2),)

    @property
    def table_steps(self) -> tuple[int, ...]:
        """The numbers of steps that tables have."""
        return self.at(*self.steps)

    def training_data(self) -> ImageData:
        """The images that arms are trained on.

        Raises:
            InputError: if they are not there, saying what to download and where to put it.
        """
        return self._open(self.recipe.data)

    def test_images(self) -> tuple[ImageData, range] | None:
        """Images that no arm has seen, and their numbers: what `data.limit` leaves out, or a hub dataset's test split.

        None where there are none.
        """
        spec = self.recipe.data
        if spec.limit is not None:
            whole = self._open(spec.model_copy(update={"limit": None}))
            count = whole.count or 0
            return (whole, range(spec.limit, count)) if count > spec.limit else None
        if spec.source.startswith("hub:") or spec.source == "cifar10":
            test = self._open(spec.model_copy(update={"split": "test"}))
            return test, range(test.count or 0)
        return None

    def _open(self, spec: DataSpec) -> ImageData:
        try:
            return open_data(spec, progress=False)
        except InputError as error:
            raise InputError(f"the scale '{self.name}' has no images to work on ({error}): {self.data_hint}") from None


def _digits() -> Scale:
    fields = (
        "data.limit=1500",  # the other 297 are test images
        "network.channels=16",
        "network.blocks=1",
        "network.attention=[]",
        "optimizer.decay=constant",  # so that fewer steps are the beginning of more
        "optimizer.learning_rate=2.0e-3",
        "ema.decay=0.99",
        "training.steps=900",
        "training.checkpoint_every=450",
        "training.sample_every=100000",
        "training.keep=1",
        "training.sample_count=16",
    )
    metrics = ("fid", "precision", "recall", "is")
    return Scale(
        "digits",
        read_recipe("digits", fields),
        "digits",
        metrics,
        images=400,
        few=128,
        likelihood_images=297,
        terms=50,
        batch=200,
    )


_CIFAR = (
    "give --data PATH, CIFAR-10 as parquet (train-00000-of-00001.parquet of the hub's dataset uoft-cs/cifar10), "
    "or install quarterarc[datasets] and connect to the network"
)


def _cifar10_short() -> Scale:
    return Scale(
        "cifar10-short",
        read_recipe("cifar10-short"),
        CLASSIFIER,
        images=5000,
        few=1000,
        likelihood_images=500,
        terms=100,
        batch=500,
        data_hint=_CIFAR,
    )


def _cifar10() -> Scale:
    return Scale("cifar10", read_recipe("cifar10"), data_hint=_CIFAR, batch=500)


def _celeba64() -> Scale:
    hint = (
        "download CelebA's aligned images (img_align_celeba, 202,599 JPEG files of 178x218 pixels) and give --data PATH"
    )
    return Scale("celeba64", read_recipe("celeba64"), data_hint=hint, terms=100)


def _church256() -> Scale:
    hint = "download LSUN's church_outdoor_train_lmdb and give --data PATH, the folder that it is unpacked to"
    return Scale(
        "church256", read_recipe("church256"), likelihood_images=200, terms=100, shown=12, batch=32, data_hint=hint
    )


SCALES = {
    "digits": _digits,
    "cifar10-short": _cifar10_short,
    "cifar10": _cifar10,
    "celeba64": _celeba64,
    "church256": _church256,
}
"""The scales by name."""


def scale(name: str, data: str | None = None, images: int | None = None, features: str | None = None) -> Scale:
    """A scale by name, or of one's own recipe.

    Args:
        name: one of `SCALES`, a recipe that ships, or the path of a recipe's YAML file.
        data: replaces the source of the images.
        images: how many images each measurement makes.
        features: an extractor's name, or "classifier".

    Raises:
        InputError: for an unknown scale, a recipe that cannot be read, or fewer than 8 images.
    """
    if name in SCALES:
        found = SCALES[name]()
    elif name.endswith((".yaml", ".yml")) or "/" in name:
        found = _of_recipe(read_recipe(name))
    else:
        raise unknown_name("scale", name, [*SCALES, "RECIPE.yaml"])
    if data is not None:
        found = replace(found, recipe=found.recipe.model_copy(update={"data": _moved(found.recipe.data, data)}))
    if images is not None:
        if images < 8:
            raise InputError(f"--images is at least 8, for a distance needs some: got {images}")
        fewer = {name: min(getattr(found, name), images) for name in ("few", "likelihood_images", "shown")}
        found = replace(found, images=images, **fewer)
    return found if features is None else _with_features(found, features)


def _of_recipe(recipe: Recipe) -> Scale:
    """One's own images: measured as digits where they are small and gray, else by Inception's features."""
    small = recipe.data.channels == 1 and 8 <= recipe.data.height <= 32
    made = Scale(recipe.name, recipe, images=10_000, few=2000)
    return _with_features(made, "digits") if small else made


def _with_features(found: Scale, features: str) -> Scale:
    spatial = ("sfid",) if features in ("inception", CLASSIFIER) else ()
    score = ("is",) if features == "digits" else ()
    return replace(found, features=features, metrics=("fid", *spatial, "precision", "recall", *score))


def _moved(spec: DataSpec, source: str) -> DataSpec:
    if not Path(source).exists() and not source.startswith("hub:"):
        raise InputError(f"no data at {source}: --data takes what `quarterarc train` takes as data.source")
    return spec.model_copy(update={"source": source})
