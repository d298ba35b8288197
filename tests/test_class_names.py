"""Classes: text and numbers in the columns of tables, and their names from the data to checkpoints and samples."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from data_samples import encode, patch, table, write_folder
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec, open_data
from quarterarc.denoiser import traits
from quarterarc.sampling.folders import write_samples
from quarterarc.storage.checkpoints import load, save
from quarterarc.training.api import train
from quarterarc.training.recipe_text import read_recipe


def write(path: Path, columns: dict[str, Any]) -> Path:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    count = len(next(iter(columns.values())))
    images = table([encode(patch(number)) for number in range(count)]).column("image")
    parquet.write_table(arrow.table({"image": images, **columns}), path)
    return path


def opened(path: Path, **fields: Any) -> Any:
    spec = DataSpec.model_validate({"source": str(path), "size": 8, "labels": True, **fields})
    return open_data(spec, cache_dir=path.parent / "cache", progress=False)


TEXTS = ["dog", "cat", "cat", "a bird", "dog"]


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary", "pandas"])
def test_text_labels_are_classes_in_sorted_order(tmp_path: Path, kind: str) -> None:
    import pyarrow as arrow

    if kind == "pandas":
        pandas = pytest.importorskip("pandas")
        column = arrow.array(pandas.Series(TEXTS, dtype="category"))
    elif kind == "dictionary":
        column = arrow.array(TEXTS).dictionary_encode()
    else:
        column = arrow.array(TEXTS, {"string": arrow.string(), "large_string": arrow.large_string()}.get(kind))
        if kind == "string_view":
            column = column.cast(arrow.string_view())
    for name in ("label", "kind"):
        data = opened(write(tmp_path / f"{name}.parquet", {name: column}), label_column=name)
        assert data.batch(range(5)).labels.tolist() == [2, 1, 1, 0, 2]
        assert list(data.class_names) == ["a bird", "cat", "dog"]
        assert data.description.endswith("3 classes (0 a bird, 1 cat, 2 dog)")
    assert opened(tmp_path / "label.parquet").classes == 3


def test_long_names_and_line_breaks_keep_the_log_to_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"label": ["a\nb", "word " * 99, "c"]})
    description = opened(path).description
    assert "3 classes (0 a b, 1 c, 2 word" in description
    assert len(description) < 250
    assert "\n" not in description
    assert opened(path).class_names[0] == "a\nb"


def test_text_that_may_be_no_class_is_not_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"caption": TEXTS})
    with pytest.raises(InputError, match=r"cannot choose the column of classes .*caption \(text\)"):
        opened(path)
    assert opened(write(tmp_path / "b.parquet", {"caption": TEXTS, "id": [0, 1, 2, 3, 4]})).classes == 5


def test_numbers_as_text_floats_and_booleans_are_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"label": ["0", "10", "2", "10", "0"]})
    assert list(opened(path).class_names) == ["0", "2", "10"]
    assert opened(path).batch(range(5)).labels.tolist() == [0, 2, 1, 2, 0]
    path = write(tmp_path / "b.parquet", {"label": [0.0, 2.0, 1.0, 0.0, 0.0]})
    assert opened(path).batch(range(5)).labels.tolist() == [0, 2, 1, 0, 0]
    path = write(tmp_path / "c.parquet", {"label": [True, False, True, True, False]})
    assert opened(path).batch(range(5)).labels.tolist() == [1, 0, 1, 1, 0]


def test_text_labels_of_saved_datasets_and_dataset_objects(tmp_path: Path) -> None:
    import datasets

    cells = [{"bytes": encode(patch(number)), "path": None} for number in range(5)]
    dataset = datasets.Dataset.from_dict({"image": cells, "label": TEXTS})
    dataset.save_to_disk(str(tmp_path / "saved"))
    declared = dataset.cast_column("label", datasets.ClassLabel(names=["dog", "cat", "a bird"]))
    assert list(opened(tmp_path / "saved").class_names) == ["a bird", "cat", "dog"]
    spec = DataSpec(source="memory", size=8, labels=True)
    assert list(open_data(spec, images=dataset).class_names) == ["a bird", "cat", "dog"]
    assert list(open_data(spec, images=declared).class_names) == ["dog", "cat", "a bird"]


def test_a_text_column_of_images_holds_paths_below_the_table(tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    write_folder(tmp_path / "pictures", 3)
    for column in ("image", "file_name", "photo"):
        paths = [f"pictures/{number:02}.png" for number in (2, 0, 1)]
        parquet.write_table(arrow.table({column: paths, "label": [0, 1, 0]}), tmp_path / "a.parquet")
        fields = {"image_column": column} if column == "photo" else {}
        data = opened(tmp_path / "a.parquet", size=32, **fields)
        assert (data.batch([0]).images[0].permute(1, 2, 0).numpy() == patch(2)).all()
    for path, rule in (("/etc/passwd", "absolute"), ("../a.png", "contains '..'"), ("https://x/a.png", "an address")):
        parquet.write_table(arrow.table({"image": [path]}), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=rule):
            opened(tmp_path / "a.parquet", labels=False)


def test_names_of_classes_go_with_the_run_and_its_samples(
    tmp_path: Path, tiny: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("class1", "class10", "class2"):
        write_folder(tmp_path / "data" / name, 4)
    (tmp_path / "data" / "class2" / "bad.png").write_bytes(b"<html>")
    (tmp_path / "data" / "notes.txt").write_bytes(b"x")
    fields = {"data.source": str(tmp_path / "data"), "data.labels": True, "data.skip_bad": True}
    caplog.set_level(logging.INFO, "quarterarc")
    run = tmp_path / "run"
    train(read_recipe("digits", (*tiny, "training.steps=1")), run, fields=fields, progress=False)
    assert "3 classes (0 class1, 1 class10, 2 class2)" in caplog.text
    assert f"folder {tmp_path / 'data'}: passed over 1 .txt" in caplog.text
    assert f"skipped {tmp_path / 'data/class2/bad.png'}: it is an HTML or XML page" in caplog.text
    (bad,) = json.loads((run / "skipped.json").read_text()).items()
    assert bad[0].endswith("bad.png")
    names = ("class1", "class10", "class2")
    denoise = load(run)
    assert traits(denoise).class_names == names
    save(denoise, tmp_path / "copy")
    assert load(tmp_path / "copy").class_names == names
    write_samples(denoise, tmp_path / "samples", range(3), labels=[2, 0], progress=False)
    about = json.loads((tmp_path / "samples/samples.json").read_text())
    assert about["class_names"] == {"0": "class1", "2": "class2"}
    write_samples(denoise, tmp_path / "samples", range(4), labels=[2, 0], progress=False)  # continues


@pytest.mark.parametrize("wrong", [5, "abc", ["a"], ["a", "b", "c", "d"], {"a": 1}])
def test_damaged_names_in_a_checkpoint_are_an_error(tmp_path: Path, tiny_run: Path, wrong: Any) -> None:
    from quarterarc.storage.checkpoints import build_denoiser, describe_denoiser

    description = describe_denoiser(load(tiny_run))
    assert "class_names" not in description
    with pytest.raises(InputError, match="class_names is not a list of one name per class"):
        build_denoiser({**description, "class_names": wrong})
