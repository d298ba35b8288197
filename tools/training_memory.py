"""The largest batch that fits the memory of a GPU, by calculation: no GPU is needed.

    python -m tools.training_memory church256 --memory 80 training.precision=bf16

Forward and backward pass of the network run on the meta device, whose tensors have sizes but no values, with the
casts that autocast applies on a GPU, and the bytes of all tensors alive are counted. Weights, their average, gradients
and Adam's two moments are included; workspaces of convolutions and fragmentation come on top. This is eager mode: a
compiled step keeps less.
"""

from __future__ import annotations

import argparse
import math
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from quarterarc.heads import head
from quarterarc.schedules import schedule
from quarterarc.training.network import recipe_network
from quarterarc.training.recipe import Recipe
from quarterarc.training.recipe_text import read_recipe


class Living(TorchDispatchMode):
    """Counts the bytes of the storages that operations inside have allocated and nothing has freed.

    Args:
        before: tensors that exist already and are not counted.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count the results that are in new storages."""
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._count(result.untyped_storage())
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class CudaAutocast:
    """The casts that `torch.autocast("cuda", torch.bfloat16)` applies in the U-Net, on any device."""

    DTYPES: ClassVar = {
        "conv2d": torch.bfloat16,
        "linear": torch.bfloat16,
        "scaled_dot_product_attention": torch.bfloat16,
        "group_norm": torch.float32,
    }

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A block in which the functions of `torch.nn.functional` cast, also during the backward pass."""
        functions = {name: getattr(F, name) for name in self.DTYPES} | {"scaled_dot_product_attention": _attend}
        casting = {name: self._casting(functions[name], dtype) for name, dtype in self.DTYPES.items()}
        with patch.dict(vars(F), casting), patch("torch.autocast", self._switched):
            yield

    def _casting(self, function: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            if self.enabled:
                args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(dtype), (args, kwargs))
            return function(*args, **kwargs)

        return call

    @contextmanager
    def _switched(self, device: str, *, enabled: bool) -> Iterator[None]:
        before, self.enabled = self.enabled, enabled and self.enabled
        try:
            yield
        finally:
            self.enabled = before


def _attend(*qkv: Tensor) -> Tensor:
    """Attention as on a GPU, which keeps no matrix of all pairs of tokens; torch has such a kernel's sizes."""
    result: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(*qkv, None, True)[0]
    return result


def step_bytes(recipe: Recipe, images: int) -> dict[str, int]:
    """The bytes of one training step of a U-Net in eager mode on a GPU.

    Args:
        recipe: its sections `data`, `network`, `head` and `training`.
        images: images per forward pass.

    Returns:
        "state": weights, their average and Adam's moments; "kept": what the forward pass keeps for the backward pass;
        "peak": the most at any time, gradients included.
    """
    channels, height, width = recipe.data.channels, recipe.data.height, recipe.data.width
    outputs = head(recipe.head, schedule(recipe.schedule.name, recipe.schedule.steps)).channels(channels)
    casts = CudaAutocast(recipe.training.precision == "bf16")
    with torch.device("meta"):
        network = recipe_network(recipe, channels, outputs, None).train()
        x, time = torch.empty(images, channels, height, width), torch.empty(images)
    state = 4 * sum(4 * weight.numel() for weight in network.parameters())
    with casts.applied(), Living([*network.parameters(), x, time]) as living:
        output = network(x, time)
        kept = living.now
        output.square().mean().backward()  # as much to compute as any loss, and fewer tensors of the output's size
    return {"state": state, "kept": kept, "peak": state + living.peak}


def largest_batch(recipe: Recipe, memory: float) -> int:
    """The largest number of images per forward pass whose step fits into `memory` bytes; 0 if none does."""
    few, more = (step_bytes(recipe, images)["peak"] for images in (8, 16))
    each = (more - few) / 8  # the peak is close to linear in the number of images
    images = 8 + math.floor((memory - few) / each)
    while images > 0 and (excess := step_bytes(recipe, images)["peak"] - memory) > 0:
        images -= math.ceil(excess / each)
    return max(images, 0)


def main(words: Sequence[str] | None = None) -> int:
    """Print a table: without and with recomputation, the bytes and the largest batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe's name or YAML file")
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE", help="fields of the recipe")
    parser.add_argument("--memory", type=float, default=80.0, help="memory of the GPU in GB (default: %(default)s)")
    given = parser.parse_args(words)
    print("| recompute | weights, average, moments (GB) | kept per image (MB) | peak per image (MB) | largest batch |")
    print("|---|---|---|---|---|")
    for recompute in ("false", "true"):
        recipe = read_recipe(given.recipe, [*given.fields, f"training.recompute={recompute}"])
        few, more = (step_bytes(recipe, images) for images in (8, 16))
        kept, peak = ((more[name] - few[name]) / 8e6 for name in ("kept", "peak"))
        largest = largest_batch(recipe, given.memory * 1e9)
        print(f"| {recompute} | {few['state'] / 1e9:.2f} | {kept:.0f} | {peak:.0f} | {largest} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
