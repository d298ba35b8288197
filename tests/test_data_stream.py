"""Streams of unknown length: example k is a function of the seed and k, in every process and after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_samples import encode, patch
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, ImageData, open_data, stream
from quarterarc.data.columns import Columns
from quarterarc.data.decode import BadImage
from quarterarc.data.stream import StreamedImages
from quarterarc.training.batches import Batches
from quarterarc.training.recipe import Recipe

COUNT = 70


def cell(number: int) -> bytes:
    """A tiny image whose pixels all have the value `number`."""
    return encode(np.full((2, 2), number, np.uint8))


def open_stream(seed: int = 0, count: int = COUNT, bad: tuple[int, ...] = (), **fields: Any) -> StreamedImages:
    def rows(epoch: int) -> Iterator[dict[str, Any]]:
        opened.append(epoch)
        return ({"image": b"" if n in bad else cell(n), "label": n % 7} for n in range(count))

    opened: list[int] = []
    spec = DataSpec(source="hub:a/b", size=2, channels=1, labels=True, memory="stream", **fields)
    data = StreamedImages(spec, rows, Columns("image", "label", 7), "hub:a/b train", torch.device("cpu"), seed)
    data.opened = opened  # type: ignore[attr-defined]
    return data


def values(data: ImageData, numbers: Any) -> list[int]:
    batch = data.batch(numbers)
    assert batch.labels is not None
    decoded = batch.images[:, 0, 0, 0].tolist()
    assert batch.labels.tolist() == [value % 7 for value in decoded]
    return decoded


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", 16)


def test_each_row_occurs_once_per_epoch_and_each_block_is_shuffled() -> None:
    seen = np.array(values(open_stream(), range(3 * COUNT))).reshape(3, COUNT)
    for epoch in seen:
        assert sorted(epoch) == list(range(COUNT))
        assert sorted(epoch[16:32]) == list(range(16, 32))
        assert list(epoch[16:32]) != list(range(16, 32))
    assert (seen[0] != seen[1]).any()
    assert (seen[0, :16] != seen[0, 16:32] - 16).any()  # blocks have different permutations
    assert values(open_stream(seed=1), range(16)) != seen[0][:16].tolist()


@pytest.mark.parametrize("start", [0, 5, 16, 69, 70, 71, 139, 140, 500])
def test_resuming_anywhere_gives_the_same_images(start: int) -> None:
    whole = values(open_stream(), range(600))
    assert values(open_stream(), range(start, start + 50)) == whole[start : start + 50]


def test_shares_of_processes_interleave_to_the_whole_stream() -> None:
    whole = values(open_stream(), range(160))
    workers = [open_stream() for _ in range(2)]
    for step in range(10):
        numbers = range(16 * step, 16 * step + 16)
        decoded = [values(worker, list(numbers)[rank::2]) for rank, worker in enumerate(workers)]
        assert [value for pair in zip(*decoded, strict=True) for value in pair] == whole[16 * step : 16 * step + 16]


def test_numbers_of_a_stream_may_come_in_any_order() -> None:
    whole = values(open_stream(), range(200))
    data = open_stream()
    for numbers in ([150, 3, 77, 3], [2], [199, 0]):  # an earlier block restarts the stream
        assert values(data, numbers) == [whole[number] for number in numbers]
    assert data.batch([]).images.shape == (0, 1, 2, 2)
    with pytest.raises(IndexError, match="negative"):
        data.batch([-1])


def test_epochs_are_skipped_once_their_length_is_known() -> None:
    data = open_stream()
    values(data, [1000])
    assert data.opened == [0, 14]  # type: ignore[attr-defined]


def test_bad_rows_are_replaced_from_their_block() -> None:
    good = values(open_stream(), range(COUNT))
    place = good.index(20)
    data = open_stream(bad=(20,), skip_bad=True)
    decoded = values(data, range(COUNT))
    following = 16 + (place - 16 + 1) % 16
    assert decoded[place] == good[following]
    assert decoded[:place] + decoded[place + 1 :] == good[:place] + good[place + 1 :]
    assert data.skipped == 1
    assert list(data.bad) == ["hub:a/b train row 20 of epoch 0"]
    assert values(open_stream(bad=(20,), skip_bad=True), [place]) == [good[following]]
    with pytest.raises(BadImage, match="hub:a/b train row 20 of epoch 0"):
        open_stream(bad=(20,)).batch(range(COUNT))
    with pytest.raises(BadImage, match="it is empty"):
        open_stream(bad=tuple(range(16)), skip_bad=True).batch([0])


def test_a_stream_has_classes_and_no_count() -> None:
    data = open_stream()
    assert data.count is None
    assert data.classes == 7


def test_a_stream_that_is_empty_or_fails_is_an_error() -> None:
    with pytest.raises(InputError, match="ended after 0 rows"):
        open_stream(count=0).batch([0])

    def broken(epoch: int) -> Iterator[dict[str, Any]]:
        yield from ({"image": cell(n)} for n in range(20))
        raise ConnectionError("the line\nis dead")

    spec = DataSpec(source="hub:a/b", size=2, channels=1)
    data = StreamedImages(spec, broken, Columns("image", None, None), "hub:a/b", torch.device("cpu"))
    assert data.batch(range(10)).labels is None
    for _ in range(2):
        with pytest.raises(InputError, match="hub:a/b ended with an error: the line is dead"):
            data.batch([30])


# --- streams of `datasets` ---------------------------------------------------------------------------------------


def hub(monkeypatch: pytest.MonkeyPatch, dataset: Any) -> list[Any]:
    import datasets

    calls: list[Any] = []

    def load_dataset(*names: Any, **options: Any) -> Any:
        calls.append((*names, options["split"], options["streaming"]))
        return dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def iterable(count: int = 60, labels: Any = None, shards: int = 3) -> Any:
    from datasets import ClassLabel, Dataset, Features, Image

    rows = {"image": [{"bytes": cell(n), "path": None} for n in range(count)], "label": [n % 7 for n in range(count)]}
    features = Features({"image": Image(), "label": labels or ClassLabel(num_classes=7)})
    return Dataset.from_dict(rows, features=features).to_iterable_dataset(num_shards=shards)


SPEC = DataSpec(source="cifar10", size=2, channels=1, labels=True, memory="stream")


def test_a_hub_stream_shuffles_shards_and_blocks_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = hub(monkeypatch, iterable())
    data = open_data(SPEC, seed=4)
    assert calls == [("uoft-cs/cifar10", None, "train", True)]
    assert isinstance(data, StreamedImages)
    assert (data.count, data.classes) == (None, 7)
    whole = values(data, range(180))
    for epoch in np.reshape(whole, (3, 60)):
        assert sorted(epoch) == list(range(60))
    firsts = [set(epoch[:16]) for epoch in np.reshape(whole, (3, 60))]
    assert firsts[0] != firsts[1] != firsts[2]  # the shards have another order per epoch
    again = open_data(SPEC, seed=4)
    assert isinstance(again, StreamedImages)
    assert values(again, range(100, 140)) == whole[100:140]
    other = open_data(SPEC, seed=5)
    assert isinstance(other, StreamedImages)
    # Both the order of the three shards and the order in each block depend on the seed.
    assert values(other, range(60)) != whole[:60]


def test_a_limited_hub_stream_has_the_same_rows_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, iterable())
    data = open_data(SPEC.model_copy(update={"limit": 25}))
    assert isinstance(data, StreamedImages)
    for epoch in np.reshape(values(data, range(75)), (3, 25)):
        assert sorted(epoch) == list(range(25))


def test_a_hub_stream_without_declared_columns_uses_its_first_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import IterableDataset

    def rows() -> Iterator[dict[str, Any]]:
        yield from ({"img": {"bytes": encode(patch(n)), "path": None}, "txt": "x"} for n in range(5))

    hub(monkeypatch, IterableDataset.from_generator(rows))
    data = open_data(SPEC.model_copy(update={"size": 32, "channels": 3, "labels": False}))
    decoded = data.batch(range(5)).images.permute(0, 2, 3, 1).numpy()
    assert {image.tobytes() for image in decoded} == {patch(n).tobytes() for n in range(5)}


def test_labels_of_a_stream_must_be_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Value

    hub(monkeypatch, iterable(labels=Value("int64")))
    with pytest.raises(InputError, match="does not declare how many classes"):
        open_data(SPEC)


def test_a_stream_reads_at_most_three_blocks_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by blocks: a few images must not read the whole stream."""
    pulled = []

    def rows(epoch: int) -> Iterator[dict[str, Any]]:
        for n in range(10_000):
            pulled.append(n)
            yield {"image": cell(n % 256)}

    spec = DataSpec(source="hub:a/b", size=2, channels=1)
    data = StreamedImages(spec, rows, Columns("image", None, None), "hub:a/b", torch.device("cpu"))
    for start in range(0, 160, 8):
        data.batch(range(start, start + 8))
        assert len(pulled) <= start + 8 + 3 * 16


class Files:
    """Stands in for a `datasets.IterableDataset`: files of ten rows each, whose reading is recorded."""

    features = None

    def __init__(self, numbers: list[int], read: list[int], seed: int | None = None) -> None:
        self.numbers, self.read, self.seed = numbers, read, seed

    @property
    def num_shards(self) -> int:
        return len(self.numbers)

    def shard(self, count: int, index: int, contiguous: bool) -> Files:
        assert not contiguous
        return Files(self.numbers[index::count], self.read)

    def shuffle(self, seed: int, buffer_size: int) -> Files:
        return Files(np.random.default_rng(seed).permutation(self.numbers).tolist(), self.read)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in self.numbers:
            self.read.append(number)
            yield from ({"image": cell(10 * number + row)} for row in range(10))


def split(parts: int, files: int = 8, **fields: Any) -> tuple[Any, list[int]]:
    """A stream in parts, and the files that it has read."""
    spec = DataSpec(source="hub:a/b", size=2, channels=1, memory="stream", stream_parts=parts, **fields)
    read: list[int] = []
    data = stream.stream_dataset(spec, Files([*range(files)], read), "hub:a/b train", torch.device("cpu"), 0)
    read.clear()  # the first row, for its columns
    return data, read


def pixels(data: Any, numbers: Any) -> list[int]:
    values: list[int] = data.batch(numbers).images[:, 0, 0, 0].tolist()
    return values


def test_the_parts_of_a_stream_have_every_row_once_per_epoch_and_are_shuffled() -> None:
    data, _ = split(4)
    first, second = pixels(data, range(80)), pixels(data, range(80, 160))
    assert sorted(first) == sorted(second) == list(range(80))
    assert first != second
    for part in range(4):
        assert {value // 10 % 4 for value in first[part::4]} == {part}
    assert pixels(split(4)[0], range(33, 50)) == first[33:50]  # a resumed run
    assert data.fingerprint != split(2)[0].fingerprint


def test_each_process_reads_the_files_of_its_own_parts() -> None:
    """Of two processes, both together see what one sees, and no file is read by both."""
    whole = pixels(split(4)[0], range(160))
    seen: list[set[int]] = []
    for rank in range(2):
        data, read = split(4)
        own = [value for step in range(10) for value in pixels(data, range(16 * step + rank, 16 * step + 16, 2))]
        assert own == whole[rank::2]
        seen.append(set(read))
    assert seen == [{0, 2, 4, 6}, {1, 3, 5, 7}]
    data, read = split(1)
    pixels(data, range(0, 80, 2))
    assert set(read) == set(range(8))  # without parts every process reads everything


def test_the_trainer_gives_a_process_its_own_parts() -> None:
    """The places of the processes make up the batch, and are the same ones in every step."""
    recipe = Recipe("digits", size=8, channels=1, training={"batch": 12, "accumulate": 2})
    data: Any = SimpleNamespace(count=None)
    shares = []
    for rank in range(3):
        accelerator: Any = SimpleNamespace(device=torch.device("cpu"), process_index=rank, num_processes=3)
        batches = Batches(data, recipe, accelerator, 1000)
        shares.append(batches.places(5))
        assert {number % 3 for number in batches.places(5) + batches.places(6)} == {rank}
    assert sorted(number for share in shares for number in share) == list(range(60, 72))


def test_wrong_parts_of_a_stream_are_an_error() -> None:
    with pytest.raises(InputError, match=r"has 8 files, fewer than data\.stream_parts=9"):
        split(9)
    with pytest.raises(InputError, match=r"data\.limit"):
        split(2, limit=5)
    with pytest.raises(InputError, match="leave it out"):
        open_data(DataSpec(source="digits", size=8, channels=1, stream_parts=2))


def test_a_hub_stream_in_parts_has_every_row_once_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three files, with the real `datasets.IterableDataset`."""
    hub(monkeypatch, iterable())
    data = open_data(SPEC.model_copy(update={"stream_parts": 3}), seed=4)
    whole = values(data, range(120))
    assert sorted(whole[:60]) == sorted(whole[60:]) == list(range(60))
    assert [len({value // 20 for value in whole[part::3]}) for part in range(3)] == [1, 1, 1]
