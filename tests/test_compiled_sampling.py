"""`compile` of sampling: one compilation for all batches, the same images, and what happens where it fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import quarterarc as qa
from benchmarks.network import randomise
from conftest import Cli
from quarterarc.common.compiling import compiled_graphs
from quarterarc.common.errors import InputError
from quarterarc.evaluation.sets import SampledSet
from quarterarc.networks import UNet
from quarterarc.sampling import Sampling
from quarterarc.sampling import compiled as compiled_module
from quarterarc.sampling.compiled import compiled
from quarterarc.wrappers import Clipped
from test_compiling import use_backend


@pytest.fixture(autouse=True)
def _possible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the trial, which compiles for seconds."""
    monkeypatch.setattr("quarterarc.common.compiling._obstacle", lambda device: None)


@pytest.fixture(scope="module")
def denoise() -> qa.Denoiser:
    """A small U-Net with classes whose two estimates disagree, and are left as they are."""
    table = qa.schedule("arc", 100)
    network = UNet(1, 2, channels=8, multipliers=(1,), blocks=1, attention=(), classes=3)
    randomise(network)
    return qa.Denoiser(network.eval(), table, qa.head("both", table), (1, 4, 4), classes=3)


def buffered(module: Any, inputs: Sequence[Tensor]) -> Any:
    """A backend that writes all outputs of a shape to the same memory, as CUDA graphs do."""
    memory: dict[Any, Tensor] = {}

    def call(*arguments: Tensor) -> list[Tensor]:
        outputs = module(*arguments)
        return [memory.setdefault(output.shape, torch.empty_like(output)).copy_(output) for output in outputs]

    return call


@pytest.mark.parametrize("guidance", [None, 1.5])
def test_the_images_are_those_of_the_network_and_nothing_is_compiled_twice(
    denoise: qa.Denoiser, guidance: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the last batch is smaller, and the sampler keeps estimates of several steps."""
    options: dict[str, Any] = {"labels": 1, "steps": 4, "batch_size": 4, "guidance": guidance, "progress": False}
    expected = qa.generate(denoise, range(10), **options)
    given = use_backend(buffered, monkeypatch)
    before = compiled_graphs()
    images = qa.generate(denoise, range(10), compile=True, **options)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)  # compiled code rounds differently
    assert compiled_graphs() == before + 1
    assert given == [{"dynamic": False, "options": {"force_layout_optimization": True, "triton.cudagraphs": False}}]
    assert denoise.network._compiled_call_impl is None  # type: ignore[attr-defined]


def test_evaluation_compiles_once_too(denoise: qa.Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend("eager", monkeypatch)
    before = compiled_graphs()
    images = SampledSet(Clipped(denoise), range(7), Sampling("ddim", 2), labels=[0, 1], compile=True)
    assert [len(batch) for _, batch in images.batches(3, lambda number: True)] == [3, 3, 1]
    assert compiled_graphs() == before + 1


def test_a_network_that_cannot_be_compiled(
    denoise: qa.Denoiser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(module: Any, inputs: Any) -> Any:
        raise RuntimeError("no kernel\nfor this layer")

    use_backend(broken, monkeypatch)
    options: dict[str, Any] = {"labels": 1, "steps": 2, "batch_size": 2, "progress": False}
    with pytest.raises(InputError, match=r"the network cannot be compiled \(.*no kernel.*compile=false") as raised:
        qa.generate(denoise, range(3), compile=True, **options)
    assert "\n" not in str(raised.value)
    monkeypatch.setattr(compiled_module, "decide", lambda *_: True)  # as `auto` on a GPU
    images = qa.generate(denoise, range(3), **options)
    warned = [record.message for record in caplog.records if record.name == "quarterarc"]
    assert len(warned) == 1
    assert warned[0].startswith("the network is not compiled: ")
    torch.testing.assert_close(images, qa.generate(denoise, range(3), compile=False, **options), rtol=0, atol=1e-4)


def test_when_a_network_is_compiled(denoise: qa.Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the calls that the images take, guidance in one batch of twice the size; never with steps per image."""
    asked = list[float]()

    def decide(setting: Any, device: Any, calls: float, name: str) -> bool:
        asked.append(calls)
        return False

    monkeypatch.setattr(compiled_module, "decide", decide)
    for sampler in (Sampling("heun", 6), Sampling("ddim", 6, guidance=2.0), Sampling("adaptive")):
        compiled(sampler.plan(denoise), "auto", 1000, 64)
    assert asked == [16 * 6 * 2, 16 * 6]
    assert compiled(Sampling().plan(denoise), "auto", 0, 64).denoise is denoise
    plan = Sampling("ddim", 2).plan(lambda x, angle: qa.Estimate(x, x), (1, 2, 2))
    assert compiled(plan, "auto", 10**9, 64) is plan
    with pytest.raises(InputError, match="compile=true needs a network"):
        compiled(plan, True, 4, 4)
    with pytest.raises(InputError, match="compile is true, false or 'auto', got 'yes'"):
        compiled(plan, "yes", 4, 4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="compile applies to sampled images"):
        qa.evaluate(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), "digits", "kid", features="pixels", compile=True)


def test_a_larger_batch_is_computed_without_compilation(denoise: qa.Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend("eager", monkeypatch)
    before = compiled_graphs()
    plan = compiled(Sampling("ddim", 1).plan(denoise), True, 8, 2)
    x, labels = qa.noise(range(4), (1, 4, 4)), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        assert torch.equal(plan.denoise(x, 1.0, labels).image, denoise(x, 1.0, labels).image)
    assert compiled_graphs() == before


def test_times_of_single_images_are_filled_up_like_images(
    denoise: qa.Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_backend("eager", monkeypatch)
    plan = compiled(Sampling("adaptive").plan(denoise), True, 8, 5)
    x, angles = qa.noise(range(3), (1, 4, 4)), torch.tensor([0.1, 0.5, 1.5], dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    with torch.no_grad():
        made, expected = (each(x, angles, labels) for each in (plan.denoise, denoise))
    torch.testing.assert_close(made.image, expected.image, rtol=0, atol=1e-5)


def test_a_flow_map_is_compiled_with_the_spans_of_its_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    table = qa.schedule("arc", 100)
    network = UNet(1, 2, channels=8, multipliers=(1,), blocks=1, attention=(), spans=True)
    randomise(network)
    jumps = qa.Denoiser(network.eval(), table, qa.head("both", table), (1, 4, 4), maps=True)
    options: dict[str, Any] = {"steps": 2, "batch_size": 2, "progress": False}
    expected = qa.generate(jumps, range(3), **options)
    use_backend(buffered, monkeypatch)
    before = compiled_graphs()
    torch.testing.assert_close(qa.generate(jumps, range(3), compile=True, **options), expected, rtol=0, atol=1e-4)
    assert compiled_graphs() == before + 1


def test_the_commands_compile(tiny_run: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    given = use_backend("eager", monkeypatch)
    for out in ("made", "made.npz"):
        done = cli("sample", tiny_run, "--out", out, "--seeds", "0-4", "--batch-size", "2", "--compile", "true",
                   "--steps", "2", "--device", "cpu")  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert len(given) == 2
    done = cli("evaluate", tiny_run, "--reference", "digits", "--features", "pixels", "--metrics", "kid",
               "--count", "5", "--compile", "true", "--steps", "1", "--device", "cpu")  # fmt: skip
    assert (done.returncode, len(given)) == (0, 3), done.stderr
    done = cli("sample", tiny_run, "--out", "other", "--compile", "yes")
    assert done.returncode == 2
    assert "true, false or auto is expected, got 'yes'" in done.stderr
