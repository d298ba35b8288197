"""The pipeline of an exported model, which needs diffusers alone: a copy of this file is in the exported folder.

    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
    pipeline(batch_size=4, num_inference_steps=20).images[0].save("sample.png")

diffusers' own pipelines have no place for networks that estimate image and noise side by side, and none for classes.
The outputs of such a network determine a velocity, which the scheduler of the folder takes (`v_prediction`).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class QuarterarcPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Images from a `UNet2DModel` with any head of quarterarc, by DDIM.

    Args:
        unet: the `UNet2DModel`.
        scheduler: a `DDIMScheduler` with `prediction_type="v_prediction"`.
        head: the meaning of the network's output channels: `noise`, `image`, `velocity`, `both` (image, then noise),
            `gated` (image, noise, and a gate per pixel) or `mean` (of DDPM's step). The channels of a
            learned variance (`both+variance`) are not used.
        null_label: the label that means "no label"; None for a network without classes, or without that label.
        class_names: the names of the classes by label, a number as text.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        head: str = "both",
        null_label: int | None = None,
        class_names: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(head=head, null_label=null_label, class_names=class_names)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        generator: Any = None,
        eta: float = 0.0,
        class_labels: Any = None,
        guidance_scale: float | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Make images.

        Args:
            batch_size: the number of images.
            num_inference_steps: the number of steps of DDIM, each one evaluation of the network.
            generator: a `torch.Generator`, or one per image.
            eta: share of fresh noise in a step.
            class_labels: one label, or one name of a class, for all images or per image; needed where the network has
                classes and no label that means "no label".
            guidance_scale: scale of classifier-free guidance; None for none.
            latents: the noise to start from, shape (batch_size, C, H, W), in place of the generator's.
            output_type: "pil", "np" for (N, H, W, C) in [0, 1], or "pt" for (N, C, H, W) in [-1, 1].
            return_dict: whether to return an `ImagePipelineOutput`, otherwise a tuple.
        """
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        device, dtype = self._execution_device, self.unet.dtype
        if latents is None:
            shape = (batch_size, self.unet.config.in_channels, height, width)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        x = latents.to(device, dtype)
        labels, unlabelled = self._labels(class_labels, len(x), device)
        if guidance_scale is not None and (class_labels is None or unlabelled is None):
            raise ValueError("guidance_scale needs class_labels, and a network with a label that means 'no label'")
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for t in self.progress_bar(self.scheduler.timesteps):
            v = self._velocity(x, t, labels)
            if guidance_scale is not None:
                without = self._velocity(x, t, unlabelled)
                v = without + guidance_scale * (v - without)
            x = self.scheduler.step(v, t, x, eta=eta, generator=generator).prev_sample
        if output_type == "pt":
            images: Any = x
        else:
            images = ((x / 2 + 0.5).clamp(0, 1)).cpu().permute(0, 2, 3, 1).float().numpy()
            if output_type == "pil":
                images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, given: Any, count: int, device: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The labels of the images and those that mean "no label", as far as the network has them."""
        null, rows = self.config.null_label, self.unet.config.num_class_embeds
        if rows is None:
            if given is not None:
                raise ValueError("the network has no classes: leave out class_labels")
            return None, None
        unlabelled = None if null is None else torch.full((count,), null, device=device)
        if given is None:
            if unlabelled is None:
                raise ValueError("the network needs class_labels: it was trained with one for every image")
            return unlabelled, unlabelled
        listed = given.tolist() if isinstance(given, torch.Tensor) else given
        listed = listed if isinstance(listed, list | tuple) else [listed]
        names = list((self.config.class_names or {}).values())
        numbers = [names.index(label) if isinstance(label, str) else int(label) for label in listed]
        labels = torch.tensor(numbers * (count if len(numbers) == 1 else 1), device=device)
        return labels, unlabelled

    def _velocity(self, x: torch.Tensor, t: Any, labels: torch.Tensor | None) -> torch.Tensor:
        """The velocity cos(angle) noise - sin(angle) image of the network's outputs at x."""
        output = self.unet(x, t, class_labels=labels, return_dict=False)[0]
        levels = self.scheduler.alphas_cumprod.to(x.device, torch.float64)
        level, before = levels[t], levels[t - 1] if t > 0 else torch.ones_like(levels[0])
        c, s = (root.to(x.dtype) for root in (level.sqrt(), (1 - level).sqrt()))
        channels, head = x.shape[1], self.config.head.partition("+")[0]
        first, second = output[:, :channels], output[:, channels : 2 * channels]
        if head == "velocity":
            return first
        if head == "noise":
            return (first - s * x) / c
        if head == "image":
            return (c * x - first) / s
        if head == "both":
            return c * second - s * first
        if head == "gated":
            gate = output[:, 2 * channels : 2 * channels + 1].clamp(-15.0, 15.0)
            p, q = gate.sigmoid(), (-gate).sigmoid()
            return (s * p * (c * x - first) + c * q * (second - s * x)) / (s * s * p + c * c * q)
        if head == "mean":  # of the step from t to the one before
            beta = self.scheduler.betas[t].to(levels)
            image_weight = (before.sqrt() * beta / (1 - level)).to(x.dtype)
            x_weight = ((1 - beta).sqrt() * (1 - before) / (1 - level)).to(x.dtype)
            image = (first - x_weight * x) / image_weight
            return (c * x - image) / s
        raise ValueError(f"the head '{head}' is not known to this file")
