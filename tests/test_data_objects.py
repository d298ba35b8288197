"""Images in memory: tensors, arrays, PIL images and `datasets` objects give their pixels, labels and clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import Image

import quarterarc
from data_samples import encode, patch, write_folder
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, from_memory, memory_spec, open_data
from quarterarc.data.images import MappedImages, MemoryImages

COUNT = 6


def stack(channels: int = 3, count: int = COUNT) -> torch.Tensor:
    """Patches as a tensor, uint8 (N, C, 32, 32)."""
    images = torch.from_numpy(np.stack([patch(number) for number in range(count)])).permute(0, 3, 1, 2)
    return images.repeat(1, 2, 1, 1)[:, :channels].contiguous()


def pixels(data: Any) -> torch.Tensor:
    return data.batch(range(data.count)).images


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_tensor_or_array_gives_its_own_pixels(channels: int) -> None:
    images = stack(channels)
    for given in (images, images.numpy(), images.numpy()[::-1].copy()[::-1]):
        data = from_memory(given)
        assert torch.equal(pixels(data), images)
        assert (data.channels, data.height, data.width, data.classes) == (channels, 32, 32, None)


def test_a_tensor_is_not_copied() -> None:
    images = stack()
    data = from_memory(images)
    assert isinstance(data, MemoryImages)
    assert data.images.data_ptr() == images.data_ptr()
    data = open_data(memory_spec(images, memory="stream"), images=images)
    assert isinstance(data, MemoryImages)
    assert torch.equal(data.batch([4, 1]).images, images[[4, 1]])


def test_a_tensor_is_resized_and_converted_like_the_same_files() -> None:
    fields: dict[str, Any] = {"size": (12, 20), "crop": "center", "channels": 1}
    from_tensor = from_memory(stack(), **fields)
    from_files = from_memory([Image.fromarray(patch(number)) for number in range(COUNT)], **fields)
    assert torch.equal(pixels(from_tensor), pixels(from_files))
    on_demand = from_memory(stack(), memory="stream", **fields)
    assert isinstance(on_demand, MappedImages)
    assert torch.equal(pixels(on_demand), pixels(from_tensor))


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_a_pair_has_labels(convert: Any) -> None:
    data = from_memory((stack(), convert([0, 2, 1, 0, 2, 2])))
    labels = data.batch([1, 5]).labels
    assert labels is not None
    assert (labels.dtype, labels.tolist(), data.classes) == (torch.int64, [2, 2], 3)
    limited = from_memory((stack(), convert([0, 2, 1, 0, 2, 2])), limit=1)
    assert (limited.count, limited.classes) == (1, 3)
    assert from_memory((stack(), convert([0, 2, 1, 0, 2, 2])), labels=False).classes is None


def test_a_list_or_tuple_of_pil_images_may_mix_modes_and_sizes() -> None:
    first, second = Image.fromarray(patch(0)), Image.fromarray(patch(1, 64, 64)).convert("P")
    for images in ([first, second], (first, second)):
        data = from_memory(images)
        assert pixels(data).shape == (2, 3, 32, 32)
        assert (pixels(data)[0].permute(1, 2, 0).numpy() == patch(0)).all()


def dataset(count: int = COUNT) -> Any:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    cells = [{"bytes": encode(patch(number)), "path": None} for number in range(count)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b", "c"])})
    return Dataset.from_dict({"image": cells, "label": [n % 2 for n in range(count)]}, features=features)


def test_a_dataset_object_gives_images_and_declared_classes() -> None:
    data = from_memory(dataset(), labels=True)
    assert (pixels(data).permute(0, 2, 3, 1).numpy() == [patch(number) for number in range(COUNT)]).all()
    assert data.classes == 3
    labels = data.batch([1, 2]).labels
    assert labels is not None
    assert labels.tolist() == [1, 0]


def test_a_dataset_object_keeps_its_selection_and_order() -> None:
    data = from_memory(dataset().select([4, 1]).with_format("torch"))
    assert (pixels(data).permute(0, 2, 3, 1).numpy() == [patch(4), patch(1)]).all()


def test_a_dataset_of_downloaded_files_is_read_and_identified_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    def paths(folder: Path) -> Any:
        cells = [{"bytes": None, "path": str(folder / f"{number:02}.png")} for number in range(3)]
        return Dataset.from_dict({"image": cells}, features=Features({"image": ImageFeature()}))

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("one", "two", "other"):
        write_folder(tmp_path / name, 3)
    (tmp_path / "other" / "01.png").write_bytes(encode(patch(9)))
    one, two, other = (from_memory(paths(tmp_path / name)) for name in ("one", "two", "other"))
    assert (pixels(one).permute(0, 2, 3, 1).numpy() == [patch(number) for number in range(3)]).all()
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_fingerprints_are_those_of_the_content() -> None:
    images = stack()
    labels = [0, 1, 2, 0, 1, 2]
    other = images.clone()
    other[3, 1, 5, 5] ^= 1
    tensors = [images, images.numpy(), images.clone().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)]
    assert len({from_memory(given).fingerprint for given in tensors}) == 1
    different = [images, other, images[:5], (images, labels), (images, labels[::-1])]
    assert len({from_memory(given).fingerprint for given in different}) == len(different)
    assert from_memory(dataset()).fingerprint == from_memory(dataset()).fingerprint
    assert from_memory(dataset()).fingerprint != from_memory(dataset().select([1, 0, 2, 3, 4, 5])).fingerprint
    pictures = [Image.fromarray(patch(number)) for number in range(2)]
    assert from_memory(pictures).fingerprint == from_memory(list(map(Image.Image.copy, pictures))).fingerprint
    assert from_memory(pictures).fingerprint != from_memory(pictures[::-1]).fingerprint


def message(images: Any, **fields: Any) -> str:
    with pytest.raises(InputError) as caught:
        from_memory(images, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FLOATS = stack().float() / 127.5 - 1
WRONG: dict[str, Any] = {
    "images.permute(0, 3, 1, 2)": stack().permute(0, 2, 3, 1),
    "images.transpose(0, 3, 1, 2)": stack().permute(0, 2, 3, 1).numpy(),
    "images[:, None]": stack()[:, 0],
    "images[None]": stack()[0],
    "images[None, None]": stack()[0, 0],
    "images.permute(2, 0, 1)[None]": stack()[0].permute(1, 2, 0),
    "quarterarc.to_uint8(images)": FLOATS,
    "quarterarc.to_uint8(torch.from_numpy(images))": FLOATS.numpy(),
    "quarterarc.to_uint8(images.permute(0, 3, 1, 2))": FLOATS.permute(0, 2, 3, 1),
    "(images * 255).round().to(torch.uint8)": stack().float() / 255,
    '(images * 255).round().astype("uint8")': stack().numpy() / 255,
    "images.round().to(torch.uint8)": stack().float(),
    "images.to(torch.uint8)": stack().long(),
    'images.astype("uint8")': stack().numpy().astype(np.int16),
    "images.to(torch.uint8) * 255": stack() > 100,
}


@pytest.mark.parametrize("call", WRONG)
def test_the_call_in_the_error_converts_the_images(call: str) -> None:
    images = WRONG[call]
    text = message(images)
    dtype = str(images.dtype).removeprefix("torch.")
    assert f"{dtype} {'tensor' if isinstance(images, torch.Tensor) else 'array'} of shape {tuple(images.shape)}" in text
    assert "expected uint8 of shape (N, C, H, W) with 1 to 4 channels" in text
    assert text.endswith(f"call {call}")
    converted = eval(call, {"images": images, "quarterarc": quarterarc, "torch": torch})
    expected = {1: stack()[:, :1] if len(images) == COUNT else stack()[:1, :1], 3: stack()[: len(converted)]}
    if images.dtype not in (torch.bool, np.bool_):
        assert torch.equal(pixels(from_memory(converted)), expected[converted.shape[1]])
    else:
        assert set(converted.unique().tolist()) == {0, 255}


def test_values_beyond_every_range_are_named() -> None:
    assert "the values lie in -3..0" in message(FLOATS * 1.5 - 1.5)
    assert "the values lie in 0..65535" in message(np.array([0, 65535], np.uint16).reshape(1, 1, 1, 2))
    for value in (np.nan, np.inf):
        assert "some values are NaN or infinite" in message(FLOATS * 0 + value)
    assert "no images were given" in message(stack()[:0])
    assert "with the channels on the second axis" in message(stack().permute(2, 0, 3, 1)[:, :, :, :, None])


def test_other_objects_are_named_with_what_is_expected() -> None:
    from datasets import DatasetDict

    assert "got a dict" in message({"images": stack()})
    assert "element 1 of the list of images is a str; expected PIL images" in message([Image.fromarray(patch(0)), "x"])
    assert "call torch.stack(images)" in message(list(stack()))
    assert "the list of images is empty" in message([])
    assert "dictionary of splits was given (train, test)" in message(DatasetDict(train=dataset(), test=dataset()))
    assert "has no length: give a Dataset" in message(dataset().to_iterable_dataset())
    assert "has no column 'photo'" in message(dataset(), image_column="photo")


def test_labels_that_do_not_fit_the_images_are_named() -> None:
    assert "the labels have the shape (2,); expected (6,)" in message((stack(), [0, 1]))
    assert "of type float64; expected whole numbers from 0, or text" in message((stack(), [0.5] * 6))
    assert "of one-hot rows call labels.argmax(1)" in message((stack(), np.eye(6)))
    assert "lie in -1..0; classes are numbered from 0" in message((stack(), [-1] + [0] * 5))
    assert "the images have no labels: give a pair" in message(stack(), labels=True)
    assert "a dataset contains its labels" in message((dataset(), [0] * 6))


@pytest.mark.parametrize("labels", [["b", "a", "c"] * 2, np.array(["b", "a", "c"] * 2), [1.0, 0.0, 2.0] * 2])
def test_labels_may_be_text_or_whole_floats(labels: Any) -> None:
    data = from_memory((stack(), labels))
    given = data.batch(range(3)).labels
    assert given is not None
    assert given.tolist() == [1, 0, 2]
    assert list(data.class_names) == ([] if isinstance(labels[0], float) else ["a", "b", "c"])


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("shape", [(32, 32, 3), (3, 32, 32), (32, 32)])
def test_the_call_in_the_error_makes_one_array_of_a_list(form: Any, shape: tuple[int, ...]) -> None:
    images = [form(np.full(shape, number, np.uint8)) for number in range(6)]
    call = message(images).partition("call ")[2]
    assert from_memory(eval(call, {"numpy": np, "torch": torch, "images": images})).count == 6


def test_the_call_in_the_error_keeps_the_sizes_of_arrays_in_a_list() -> None:
    images = [patch(0), patch(1, 20, 30), patch(2)[..., 0]]
    call = message(images).partition("call ")[2]
    assert from_memory(eval(call, {"PIL": PIL, "images": images})).count == 3


def test_a_spec_of_images_in_memory_needs_the_images() -> None:
    spec = memory_spec((stack(), [0] * COUNT))
    assert spec == DataSpec(source="memory", size=(32, 32), channels=3, labels=True)
    with pytest.raises(InputError, match="the data was given as images in memory: give the same images again"):
        open_data(spec)
