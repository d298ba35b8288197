"""Scales: the images, network and counts of an experiment.

A scale fixes everything that arms share: data, network, optimiser, number of training images, and evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..common.errors import InputError, unknown_name
from ..common.limits import MOST_IMAGES
from ..data import DataSpec, ImageData, open_data
from ..evaluation.extractors import EXTRACTORS, usual_features
from ..training.recipe import Recipe
from ..training.recipe_text import read_recipe

__all__ = ["CLASSIFIER", "PINNED", "SCALES", "Pretrained", "Scale", "scale"]

CLASSIFIER = "classifier"
"""The features of `evaluation.extractors.classifier`, trained on the scale's own labelled images."""

PINNED = ("objective.norm=mse",)
"""Fields of all arms trained on images, unless an arm overrides them: the defaults of recipes may differ."""


@dataclass(frozen=True)
class Pretrained:
    """A network that is given and not trained.

    Attributes:
        label: its name in tables.
        arm: the name of the arm that it stands for, in every experiment that has such an arm.
        path: a run, a checkpoint, or a folder of diffusers, as for `quarterarc.load`.
        identity: the hash of its weights and configuration.
    """

    label: str
    arm: str
    path: str
    identity: str


@dataclass(frozen=True)
class Scale:
    """What all arms of an experiment share, and the size of its measurements.

    Attributes:
        name: the name in results.
        recipe: the recipe that all arms start from.
        features: an extractor's name, or `CLASSIFIER`.
        metrics: metrics of `quarterarc.evaluation` that these features allow.
        images: the number of images per measurement.
        few: the number of images where a trajectory has more than half of the schedule's steps.
        steps: the numbers of steps in tables; those of at least T are left out.
        likelihood_images: the number of training and of test images for bits per dimension.
        terms: the number of terms of the variational bound that are drawn per image; None for all terms.
        shown: the number of images in a contact sheet.
        batch: the batch size of sampling.
        data_hint: where to get the images, for error messages.
        noise_steps: the training steps of arms that estimate the noise alone, where they were published with more than
            the others; None for the recipe's.
        pretrained: the networks that are given and not trained.
        norms: the norms in which the arms of Zhang et al.'s tables are trained, each a group of rows; at least one.
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
    noise_steps: int | None = None
    pretrained: tuple[Pretrained, ...] = ()
    norms: tuple[str, ...] = ("mse", "l2")

    def training_steps(self, head: str) -> int:
        """The training steps of an arm with a head."""
        return self.noise_steps if self.noise_steps is not None and head == "noise" else self.recipe.training.steps

    def given(self, arm: str) -> Pretrained | None:
        """The network that is given for an arm; None for one that is trained."""
        return next((network for network in self.pretrained if network.arm == arm), None)

    @property
    def all_steps(self) -> int:
        """T, the number of steps of the schedule."""
        return self.recipe.schedule.steps

    def at(self, *steps: int) -> tuple[int, ...]:
        """The numbers of steps that lie below T; T/2 if there are none."""
        return tuple(count for count in steps if count < self.all_steps) or (max(1, self.all_steps // 2),)

    @property
    def table_steps(self) -> tuple[int, ...]:
        """The numbers of steps in tables."""
        return self.at(*self.steps)

    def training_data(self) -> ImageData:
        """The training images of all arms.

        Raises:
            InputError: if they are missing; the message names where to get them.
        """
        return self._open(self.recipe.data)

    def test_images(self) -> tuple[ImageData, range] | None:
        """Images that no arm is trained on, and their numbers; None if there are none.

        They are the images that `data.limit` leaves out, the test split of a hub dataset, or what lies beside the
        training images under the name `test`: the parquet files of that split, or a folder beside one called `train`.
        """
        spec = self.recipe.data
        if spec.limit is not None:
            whole = self._open(spec.model_copy(update={"limit": None}))
            count = whole.count or 0
            if count > spec.limit:
                return whole, range(spec.limit, count)
        if spec.source.startswith("hub:") or spec.source in ("cifar10", "celeba"):
            test = self._open(spec.model_copy(update={"split": "test"}))
            return test, range(test.count or 0)
        source = _test_source(spec.source)
        if source is not None:
            test = self._open(spec.model_copy(update=source))
            return test, range(test.count or 0)
        return None

    def _open(self, spec: DataSpec) -> ImageData:
        try:
            return open_data(spec, progress=False)
        except InputError as error:
            raise InputError(f"cannot open the images of the scale '{self.name}' ({error}): {self.data_hint}") from None


def _digits() -> Scale:
    fields = (
        "data.limit=1500",  # the other 297 are test images
        *PINNED,
        "network.channels=16",
        "network.blocks=1",
        "network.attention=[]",
        "optimizer.decay=constant",  # so that a shorter training is the beginning of a longer one
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


def _patches16() -> Scale:
    fields = (
        "name=patches16",
        *PINNED,
        "data.source=patches16",
        "data.size=16",
        "data.channels=3",
        "network.channels=24",
        "network.blocks=1",
        "network.attention=[8]",
        "optimizer.decay=constant",
        "optimizer.learning_rate=1.0e-3",
        "ema.decay=0.99",
        "training.steps=1500",
        "training.checkpoint_every=500",
        "training.sample_every=100000",
        "training.keep=1",
        "training.sample_count=16",
    )
    hint = "write them with `python -m tools.make_patches --out patches16` in a clone, and give --data patches16"
    return Scale(
        "patches16",
        read_recipe("digits", fields),
        images=500,
        few=500,
        steps=(10, 20, 50),  # the table of one seed is trained and measured in about an hour on two cores
        likelihood_images=200,
        terms=50,
        data_hint=hint,
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
    hint = "download LSUN's church_outdoor_train_lmdb, unpack it and give the folder as --data PATH"
    return Scale(
        "church256",
        read_recipe("church256"),
        likelihood_images=200,
        terms=100,
        shown=12,
        batch=32,
        data_hint=hint,
        noise_steps=4_432_000,
    )


SCALES = {
    "digits": _digits,
    "patches16": _patches16,
    "cifar10-short": _cifar10_short,
    "cifar10": _cifar10,
    "celeba64": _celeba64,
    "church256": _church256,
}
"""The scales by name."""


def scale(name: str, data: str | None = None, images: int | None = None, features: str | None = None) -> Scale:
    """The scale of this name, or a scale from your own recipe.

    Args:
        name: a name in `SCALES`, or the path of a recipe's YAML file.
        data: another source of the images.
        images: another number of images per measurement.
        features: an extractor's name, or "classifier"; of colour images by default Inception's, or EfficientNet-Lite0's
            as for `quarterarc.evaluate`.

    Raises:
        InputError: for an unknown scale or extractor, an unreadable recipe, or fewer than 8 images.
    """
    if features is not None:
        EXTRACTORS.require(features)
    if name in SCALES:
        chosen = SCALES[name]()
    elif name.endswith((".yaml", ".yml")) or "/" in name:
        chosen = _from_recipe(read_recipe(name))
    else:
        raise unknown_name("scale", name, [*SCALES, "RECIPE.yaml"])
    if data is not None:
        spec = _with_source(chosen.recipe.data, data)
        chosen = replace(chosen, recipe=chosen.recipe.model_copy(update={"data": spec}))
    if images is not None:
        if not 8 <= images <= MOST_IMAGES:
            raise InputError(
                f"--images must be at least 8, as a Frechet distance needs, and at most {MOST_IMAGES:,}: got {images}"
            )
        fewer = {field: min(getattr(chosen, field), images) for field in ("few", "likelihood_images", "shown")}
        chosen = replace(chosen, images=images, **fewer)
    if features is None and chosen.features == "inception":
        features = usual_features()
    return chosen if features in (None, chosen.features) else _with_features(chosen, features)


def _from_recipe(recipe: Recipe) -> Scale:
    """A scale for your own images: `digits` features for small gray images, Inception's for all others."""
    name = recipe.name
    if name in ("", ".", "..") or len(name) > 100 or any(mark in name for mark in "/\\:\0"):
        raise InputError(
            f"the recipe's name {name[:100]!r} is the name of a folder of results: give a name without '/'"
        )
    small = recipe.data.channels == 1 and 8 <= recipe.data.height <= 32
    chosen = Scale(recipe.name, recipe, images=10_000, few=2000)
    return _with_features(chosen, "digits") if small else chosen


def _with_features(chosen: Scale, features: str) -> Scale:
    spatial = ("sfid",) if features in ("inception", CLASSIFIER) else ()
    score = ("is",) if features == "digits" else ()
    return replace(chosen, features=features, metrics=("fid", *spatial, "precision", "recall", *score))


def _test_source(source: str) -> dict[str, str] | None:
    """Fields of `data` for the test images beside training images; None if there are none."""
    path = Path(source).expanduser()
    if path.is_dir() and any(path.glob("test*.parquet")) and any(path.glob("train*.parquet")):
        return {"split": "test"}
    if not path.name.startswith("train"):
        return None
    if path.is_dir():
        test = path.with_name("test" + path.name.removeprefix("train"))
        return {"source": str(test)} if test.is_dir() else None
    if path.suffix == ".parquet" and any(path.parent.glob("test*.parquet")):
        return {"source": str(path.parent / "test*.parquet")}
    return None


def _with_source(spec: DataSpec, source: str) -> DataSpec:
    if not Path(source).exists() and not source.startswith("hub:"):
        raise InputError(
            f"there are no images at {source}: --data accepts what a recipe accepts as data.source, such as a folder "
            "of images, a parquet file or hub:OWNER/NAME"
        )
    return spec.model_copy(update={"source": source})
