"""One optimiser step: losses, gradients of all processes, AdamW, and the moving average of the weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..common.compiling import compile_network, compiled_graphs, first_call, not_compiled
from ..common.streams import Purpose, torch_seed
from ..denoiser import Denoiser
from ..estimate import Estimate
from ..objectives import Losses, MapObjective, Objective
from . import ema
from .batches import Batch
from .learning_rate import factor_at
from .log import LOGGED
from .recipe import Recipe

__all__ = ["Learner"]

logger = logging.getLogger("quarterarc")


class Learner:
    """The network that is trained, its average and its optimiser.

    Args:
        recipe: the settings, resolved.
        denoise: a denoiser of the new network, on the device.
        accelerator: this process among all.
        compiled: compile the network, at the first step.
        objective: the objective; that of the recipe if None.

    Attributes:
        network: the network.
        average: the network of the moving average of the weights; in the first process alone, which saves it.
        optimizer: AdamW on the weights of the network.
        notes: lines for the log about compilation.
    """

    def __init__(
        self,
        recipe: Recipe,
        denoise: Denoiser,
        accelerator: Accelerator,
        compiled: bool,
        objective: Objective | None = None,
    ) -> None:
        assert isinstance(denoise.network, nn.Module)
        self.recipe, self.accelerator, self.network = recipe, accelerator, denoise.network
        self.objective = recipe.objective.build() if objective is None else objective
        self.notes: list[str] = []
        self._compiles = compiled
        self._graphs: int | None = None  # compiled in this process, counted after the first step
        if compiled:
            self._compile()
        self.average: nn.Module | None = None
        if accelerator.is_main_process:
            self.average = deepcopy(self.network).eval().requires_grad_(False)
        chosen = recipe.optimizer
        self.optimizer = torch.optim.AdamW(
            [weight for weight in self.network.parameters() if weight.requires_grad],
            chosen.learning_rate, chosen.betas, chosen.eps, chosen.weight_decay, fused=True,
        )  # fmt: skip
        on_cpu = accelerator.device.type == "cpu"
        self._parallel: Any = self.network if on_cpu else accelerator.prepare_model(self.network)
        self._denoise = replace(denoise, network=self._parallel)

    def step(self, parts: Sequence[Batch], step: int) -> tuple[Tensor, Tensor]:
        """One optimiser step.

        Args:
            parts: this process's parts of the global batch.
            step: the number of optimiser steps before this one.

        Returns:
            The mean losses of this process, shape (5,), in the order of `LOGGED`, and the norm of the gradient before
            clipping, both on the device: reading them there waits for it.

        Raises:
            InputError: if the network cannot be compiled, and the recipe demands it.
        """
        if not self._compiles:
            return self._step(parts, step)
        if self._graphs is not None:
            results = self._step(parts, step)
            if compiled_graphs() > self._graphs:
                self._graphs = compiled_graphs()
                logger.warning("the network was compiled again at step %d (%d graphs so far)", step, self._graphs)
            return results
        return self._first_step(parts, step)

    @torch.no_grad()
    def held_out_loss(self, batch: Batch, step: int) -> Tensor:
        """The mean loss of a batch, without dropout and without a gradient; 0-dimensional, on the device.

        Args:
            batch: the images and draws.
            step: the number of completed optimiser steps.
        """
        training = self.network.training
        with not_compiled(self.network):
            losses = self._losses(batch, step, replace(self._denoise, network=self.network.eval()))
        self.network.train(training)
        return losses.total.mean()

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _compile(self) -> None:
        cuda, accumulate = self.accelerator.device.type == "cuda", self.recipe.training.accumulate
        compile_network(self.network, graphs=cuda and accumulate == 1)
        if cuda and accumulate > 1:
            self.notes.append(f"no CUDA graphs: gradients accumulate over {accumulate} parts (training.accumulate)")

    def _first_step(self, parts: Sequence[Batch], step: int) -> tuple[Tensor, Tensor]:
        """The step that compiles; where that fails, `auto` goes on without compilation."""
        setting = self.recipe.training.compile
        results = first_call(
            self.network, lambda: self._losses_and_gradient(parts, step), setting, "resume with training.compile=false"
        )
        if results is None:
            self._compiles = False
            self.optimizer.zero_grad(set_to_none=True)
            return self._step(parts, step)
        self._graphs = compiled_graphs()
        self._update(step)
        return results

    def _step(self, parts: Sequence[Batch], step: int) -> tuple[Tensor, Tensor]:
        results = self._losses_and_gradient(parts, step)
        self._update(step)
        return results

    def _losses_and_gradient(self, parts: Sequence[Batch], step: int) -> tuple[Tensor, Tensor]:
        """Mean losses and the gradient's norm; the weights' gradients are clipped and averaged over all processes."""
        settings = self.recipe.training
        torch.manual_seed(torch_seed(settings.seed, Purpose.DROPOUT, step, self.accelerator.process_index))
        self._parallel.train()
        logged = torch.zeros(len(LOGGED), device=self.accelerator.device)
        for place, batch in enumerate(parts):
            if self._compiles:
                torch.compiler.cudagraph_mark_step_begin()  # outputs of the pass before are not used any more
            last = place == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self._parallel):
                losses = self._losses(batch, step)
                self.accelerator.backward(losses.total.mean() / len(parts))
            means = (losses.total, losses.image, losses.noise, losses.velocity, losses.residual)
            logged += torch.stack([loss.detach().mean() for loss in means]) / len(parts)
        if self._parallel is self.network and self.accelerator.num_processes > 1:
            self._average_gradients()
        return logged, torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.optimizer.clip)

    def _losses(self, batch: Batch, step: int, denoise: Denoiser | None = None) -> Losses:
        denoise = denoise or self._denoise
        if not isinstance(self.objective, MapObjective):
            return denoise.loss(self.objective, batch.image, batch.noise, batch.times, batch.labels, batch.augmentation)
        progress = step / self.recipe.training.steps
        denoiser = self._denoise
        start, end = self.objective.angles(batch.uniform, denoiser.largest_angle, progress, denoiser.smallest_angle)
        return self.objective.losses(
            self._same_dropout(denoise), batch.image, batch.noise, start, end, batch.labels, progress
        )

    def _same_dropout(self, network: Denoiser | None = None) -> Callable[..., Estimate]:
        """The denoiser, with the same random numbers in every call."""
        seed = torch.initial_seed()

        def denoise(*arguments: Any, **further: Any) -> Estimate:
            torch.manual_seed(seed)
            return (network or self._denoise)(*arguments, **further)

        return denoise

    def _average_gradients(self) -> None:
        """Average the gradients over all processes on the CPU, in the order of the parameters.

        `DistributedDataParallel` puts them in another order after its first step, in which the sums of more than two
        processes have other bits: a resumed run would differ from an uninterrupted one.
        """
        gradients = [weight.grad for weight in self.network.parameters() if weight.grad is not None]
        means = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        for gradient, mean in zip(gradients, means.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def _update(self, step: int) -> None:
        """Change the weights by their gradients, and the average by the weights."""
        chosen, settings = self.recipe.optimizer, self.recipe.training
        assert chosen.warmup != "auto"  # the recipe is resolved
        rate = chosen.learning_rate * factor_at(step, settings.steps, chosen.warmup, chosen.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            decay = ema.decay_at(step, self.recipe.ema.decay, self.recipe.ema.warmup)
            ema.update_network(self.average, self.network, decay)
