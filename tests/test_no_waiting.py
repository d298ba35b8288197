"""Training queues its work on a GPU without waiting for it, and writes checkpoints while it goes on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from quarterarc.common.errors import InputError
from quarterarc.data import open_data
from quarterarc.denoiser import Denoiser
from quarterarc.heads import head
from quarterarc.objectives import Losses
from quarterarc.objectives.errors import WeightedErrors
from quarterarc.schedules import schedule
from quarterarc.storage import training_state
from quarterarc.storage.runs import checkpoints
from quarterarc.storage.weights import read_weights
from quarterarc.training import trainer as trainer_module
from quarterarc.training.api import train
from quarterarc.training.background import Background
from quarterarc.training.batches import Batches
from quarterarc.training.learner import Learner
from quarterarc.training.network import recipe_network
from quarterarc.training.recipe_text import read_recipe
from quarterarc.training.trainer import Diverged
from quarterarc.training.watch import LATER, Checked, Watch

META = torch.device("meta")


class Copies(TorchDispatchMode):
    """Records the copies from the CPU to another device that wait for the device's work."""

    def __init__(self) -> None:
        super().__init__()
        self.made, self.waiting = 0, list[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if str(function).startswith(("aten._to_copy", "aten.copy_")):
            source = args[0] if "_to_copy" in str(function) else args[1]
            if source.device.type == "cpu" and result.device != source.device:
                self.made += 1
                if not (kwargs or {}).get("non_blocking"):
                    self.waiting.append(f"{function} of shape {tuple(source.shape)}")
        return result


@pytest.mark.parametrize("head_name", ["both", "gated", "mean"])
def test_a_training_step_does_not_wait_for_the_device(
    head_name: str, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device `meta`, which has no values: reading one raises, whatever the way."""
    fields = [*tiny, "data.flip=true", "data.labels=true", "network.dropout=0.1", "training.accumulate=2"]
    recipe = read_recipe("digits", [*fields, f"head={head_name}"]).resolved()
    adam = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *a, **options: adam(*a, **{**options, "fused": False}))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # not known for `meta`
    accelerator: Any = SimpleNamespace(
        device=META, is_main_process=True, num_processes=1, process_index=0,
        prepare_model=lambda network: network, no_sync=lambda network: nullcontext(),
        backward=lambda loss: loss.backward(),
    )  # fmt: skip
    table = schedule("arc", recipe.schedule.steps)
    chosen = head(head_name, table)
    network = recipe_network(recipe, 1, chosen.channels(1), 10).to(META)
    learner = Learner(recipe, Denoiser(network, table, chosen, (1, 8, 8), 10), accelerator, False)
    data = open_data(recipe.data, META, progress=False, seed=0)
    batches, watch = Batches(data, recipe, accelerator, table.steps - 1), Watch(META)
    with Copies() as copies:
        for step in range(2):
            losses, norm = learner.step(batches.of_step(step), step)
            watch.add(step, losses[0], norm, torch.zeros(()))
            assert not list(watch.due())
    assert copies.made
    assert copies.waiting == []
    with pytest.raises((RuntimeError, NotImplementedError)):  # the premise: a value cannot be read
        float(norm)


def test_the_values_of_a_step_are_read_a_fixed_number_of_steps_later() -> None:
    watch = Watch(torch.device("cpu"), later=3)
    seen = []
    for step in range(10, 16):
        watch.add(step, torch.tensor(float(step)), torch.tensor(1.0), 2 * (step == 11))
        seen.append(list(watch.due()))
    assert seen == [[], [], [], *([Checked(step, float(step), 1.0, 2 * (step == 11))] for step in (10, 11, 12))]
    assert [checked.step for checked in watch.due(all=True)] == [13, 14, 15]
    assert list(watch.due(all=True)) == []
    assert Watch(torch.device("cuda"))._later == LATER  # its tensors are not made


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_late_check_names_the_step_its_images_and_the_last_good_checkpoint(
    value: float, tmp_path: Path, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the weights are damaged by then, and no checkpoint is made of them."""
    call, calls = WeightedErrors.__call__, list[int]()

    def broken(self: WeightedErrors, *arguments: Any) -> Losses:
        losses = call(self, *arguments)
        calls.append(1)
        if len(calls) == 6:
            losses.total[0] *= value
        return losses

    monkeypatch.setattr(WeightedErrors, "__call__", broken)
    monkeypatch.setattr(trainer_module, "Watch", lambda device: Watch(device, later=4))
    recipe = read_recipe(
        "digits", [*tiny, "training.steps=40", "training.checkpoint_every=4", "training.log_every=40",
                   "training.sample_every=40"],
    )  # fmt: skip
    with pytest.raises(Diverged) as stopped:
        train(recipe, tmp_path, progress=False)
    assert len(calls) == 8  # the checkpoint at step 8 reads all that is under way
    expected = Batches(
        open_data(recipe.data, torch.device("cpu"), progress=False, seed=0), recipe,
        Accelerator(cpu=True), 1,
    ).places(5)  # fmt: skip
    assert "the gradient is not finite at step 5 " in str(stopped.value)
    assert f"indices {expected}: the last good checkpoint is {tmp_path}/checkpoints/step-00000004;" in str(
        stopped.value
    )
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004"]


def test_a_checkpoint_has_the_state_of_its_step_although_training_goes_on(
    tmp_path: Path, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing the second checkpoint is held up until the weights have changed further; the first is waited for."""
    fields = [*tiny, "training.checkpoint_every=2", "training.sample_every=6", "training.log_every=6"]
    train(read_recipe("digits", [*fields, "training.keep=9"]), tmp_path / "plain", progress=False)
    further, save = threading.Event(), training_state.save

    def held(run: Path, config: dict[str, Any], *arguments: Any) -> Path:
        assert config["step"] == 2 or further.wait(30)
        return save(run, config, *arguments)

    step = Learner.step

    def watched(self: Learner, parts: Any, number: int) -> Any:
        result = step(self, parts, number)
        if number == 5:  # two steps after the checkpoint of step 4 was begun
            assert not (tmp_path / "held" / "checkpoints" / "step-00000004").exists()
            further.set()
        return result

    monkeypatch.setattr(trainer_module, "save", held)
    monkeypatch.setattr(Learner, "step", watched)
    train(read_recipe("digits", [*fields, "training.keep=9"]), tmp_path / "held", progress=False)
    for made, plain in zip(checkpoints(tmp_path / "held"), checkpoints(tmp_path / "plain"), strict=True):
        for name in ("model.safetensors", "raw.safetensors", "optimizer.safetensors"):
            assert (made / name).read_bytes() == (plain / name).read_bytes(), (made.name, name)


def test_an_error_while_a_checkpoint_is_written_stops_training(
    tmp_path: Path, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Path:
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(trainer_module, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(read_recipe("digits", [*tiny, "training.steps=400"]), tmp_path, progress=False)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) < 100


def test_background_work_is_done_in_order_one_at_a_time_and_its_errors_are_raised() -> None:
    done, running = list[int](), list[int]()

    def work(number: int) -> None:
        running.append(number)
        assert len(running) == len(done) + 1
        done.append(number)

    with Background() as background:
        for number in range(5):
            background.start(lambda number=number: work(number))  # type: ignore[misc]
        background.wait()
        assert done == [0, 1, 2, 3, 4]

    def fail() -> None:
        raise InputError("full")

    with pytest.raises(InputError, match="full"), Background() as background:
        background.start(fail)
    background = Background()
    background.start(fail)
    with pytest.raises(InputError, match="full"):
        background.start(lambda: None)


def test_a_resumed_run_may_save_memory(tmp_path: Path, tiny: Sequence[str]) -> None:
    """`training.accumulate` and `training.compile` change the weights by rounding alone."""
    train(read_recipe("digits", [*tiny, "training.steps=6"]), tmp_path / "plain", progress=False)
    train(read_recipe("digits", [*tiny, "training.steps=2"]), tmp_path / "run", progress=False)
    fields = {"training.accumulate": 4, "training.compile": False, "training.steps": 6}
    train(None, tmp_path / "run", resume=True, fields=fields, progress=False)
    changes = (tmp_path / "run" / "changes.jsonl").read_text()
    assert '"training.accumulate"' in changes
    assert '"training.compile"' in changes
    made, plain = (read_weights(checkpoints(tmp_path / run)[-1] / "raw.safetensors") for run in ("run", "plain"))
    assert made.keys() == plain.keys()
    differences: list[Tensor] = [(made[name] - plain[name]).abs().max() for name in plain]
    # Adam's first steps have the size of the learning rate for any gradient above eps, so rounding is not amplified
    # beyond a share of it
    assert max(differences) < 1e-4
