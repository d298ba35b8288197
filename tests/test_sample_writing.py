"""Images are written while the next batch is computed; errors and interruptions lose none that are finished."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import quarterarc as qa
from quarterarc.common.errors import InputError
from quarterarc.data.pixels import levels, to_uint8
from quarterarc.sampling import Sampling, write_samples
from quarterarc.sampling.arrivals import arriving
from quarterarc.storage.pictures import is_whole_png, write_png

SHAPE = (1, 4, 4)
ONE_STEP = Sampling("rotation", 1)


def denoiser(before: Callable[[int], object] = lambda batch: None) -> qa.Denoiser:
    """A denoiser of images near 0.

    Args:
        before: called with the number of the batch, from 0, before it is evaluated.
    """
    calls = list[int]()

    def network(x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        before(len(calls))
        calls.append(len(x))
        return x * 0.1

    table = qa.schedule("arc", 10)
    return qa.Denoiser(network, table, qa.head("image", table), SHAPE)


def seeds_in(out: Path) -> list[int]:
    assert all(is_whole_png(path, SHAPE) for path in out.glob("0*.png"))
    return sorted(int(path.stem) for path in out.glob("0*.png"))


def test_images_are_written_while_the_next_batch_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of batch 0 wait for the start of batch 1; those of batch 1 are there before batch 3 starts."""
    started = threading.Event()
    order = list[str]()

    def write(path: Path, pixels: Tensor) -> None:
        if path.stem in ("000000", "000001"):
            assert started.wait(20)
        write_png(path, pixels)
        order.append(path.stem)

    def before(batch: int) -> None:
        if batch == 1:
            assert seeds_in(tmp_path) == []
            started.set()
        elif batch > 1:  # bounded memory: at most one batch waits for its files
            assert set(range(2 * (batch - 1))) <= {*seeds_in(tmp_path)}

    monkeypatch.setattr("quarterarc.sampling.folders.write_png", write)
    about = write_samples(denoiser(before), tmp_path, range(9), ONE_STEP, batch_size=2, progress=False)
    assert about is not None
    assert (about["count"], about["nfe"]) == (9, 1)
    assert about["images_per_second"] > 0
    assert len(order) == 9 + 1  # with the contact sheet


def test_a_full_disk_keeps_the_images_that_could_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, pixels: Tensor) -> None:
        if path.stem == "000003":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_png(path, pixels)

    monkeypatch.setattr("quarterarc.sampling.folders.write_png", full)
    with pytest.raises(OSError, match="No space left"):
        write_samples(denoiser(), tmp_path, range(8), ONE_STEP, batch_size=2, progress=False)
    assert {0, 1, 2} <= {*seeds_in(tmp_path)} < {*range(6)}
    monkeypatch.undo()
    about = write_samples(denoiser(), tmp_path, range(8), ONE_STEP, batch_size=2, progress=False)
    assert about is not None
    assert seeds_in(tmp_path) == [*range(8)]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, InputError])
def test_an_interruption_keeps_the_images_of_all_batches_before(tmp_path: Path, stop: type[BaseException]) -> None:
    def before(batch: int) -> None:
        if batch == 2:
            raise stop("now")

    with pytest.raises(stop):
        write_samples(denoiser(before), tmp_path, range(8), ONE_STEP, batch_size=3, progress=False)
    assert seeds_in(tmp_path) == [*range(6)]
    assert json.loads((tmp_path / "samples.json").read_text())["complete"] is False


def test_an_image_that_is_not_finite_is_named_and_those_before_it_are_kept(tmp_path: Path) -> None:
    good = denoiser()

    def network(x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        return good.network(x, time).where(x[:, :1, :1, :1] != qa.noise([5], SHAPE)[:, :1, :1, :1], float("nan"))

    with pytest.raises(InputError, match="the image of seed 5 has pixels that are NaN"):
        write_samples(replace(good, network=network), tmp_path, range(8), ONE_STEP, batch_size=3, progress=False)
    assert seeds_in(tmp_path) == [0, 1, 2]


class FakeEvent:
    """An event of a GPU: records how many batches were queued when it is waited for."""

    queued, waits = 0, list[int]()

    def __init__(self, blocking: bool) -> None:
        assert blocking  # a busy wait would take the processor from the threads that write

    def record(self, stream: object) -> None:
        FakeEvent.queued += 1

    def synchronize(self) -> None:
        self.waits.append(FakeEvent.queued)


class OnGpu(torch.Tensor):
    """A tensor on the CPU that is taken for one on a GPU, and whose copies have to be queued."""

    device = torch.device("cuda:0")

    def to(self, target: Any, non_blocking: bool = False) -> Tensor:  # type: ignore[override]
        if target != "cpu":
            return super().to(target)
        assert non_blocking
        return self.as_subclass(torch.Tensor)


def test_the_next_batch_is_queued_on_a_gpu_before_the_last_one_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.Event", FakeEvent)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: device)
    images = [torch.full((2, 1, 2, 2), 0.1 * number).as_subclass(OnGpu) for number in range(3)]
    results = (([number], qa.Result(batch, 10, qa.grid("angle", 1))) for number, batch in enumerate(images))
    arrived = [*arriving(results, levels)]
    assert FakeEvent.waits == [2, 3, 3]
    for number, batch in enumerate(arrived):
        assert batch.seeds == [number]
        assert torch.equal(batch.images, to_uint8(torch.full((2, 1, 2, 2), 0.1 * number)))
        assert batch.finite.tolist() == [True, True]
