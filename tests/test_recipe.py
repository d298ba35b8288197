"""Recipes: every field is validated, unknown fields are errors, and a written recipe is read back unchanged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Cli
from quarterarc.common.errors import InputError
from quarterarc.data import DataSpec
from quarterarc.networks import UNet
from quarterarc.objectives import objective
from quarterarc.training.recipe import Recipe, differences
from quarterarc.training.recipe_text import read_recipe, recipe_names


def test_every_recipe_of_the_package_is_valid_and_round_trips(tmp_path: Path) -> None:
    assert recipe_names() == ["celeba64", "church256", "cifar10", "cifar10-short", "digits", "photos"]
    for name in recipe_names():
        recipe = read_recipe(name)
        assert recipe.name == name
        (tmp_path / "saved.yaml").write_text(recipe.to_yaml())
        assert read_recipe(str(tmp_path / "saved.yaml")) == recipe


@pytest.mark.parametrize(
    ("name", "multipliers", "dropout", "rate", "warmup", "batch", "decay", "flip"),
    [
        ("cifar10", (1, 2, 2, 2), 0.1, 2e-4, 5000, 128, 0.9999, True),
        ("celeba64", (1, 2, 2, 2, 4), 0.1, 2e-4, 0, 128, 0.9999, True),
        ("church256", (1, 1, 2, 2, 4, 4), 0.0, 2e-5, 5000, 64, 0.9999, True),
    ],
)
def test_published_settings(
    name: str,
    multipliers: tuple[int, ...],
    dropout: float,
    rate: float,
    warmup: int,
    batch: int,
    decay: float,
    flip: bool,
) -> None:
    """Ho et al. 2020, appendix B, and the configurations of DDIM's published checkpoints."""
    recipe = read_recipe(name)
    assert recipe.network.channels == 128
    assert recipe.network.blocks == 2
    assert recipe.network.attention == (16,)
    assert recipe.network.multipliers == multipliers
    assert recipe.network.dropout == dropout
    assert recipe.optimizer.learning_rate == rate
    assert recipe.optimizer.warmup == warmup
    assert recipe.optimizer.clip == 1.0
    assert recipe.training.batch == batch
    assert recipe.ema.decay == decay
    assert recipe.data.flip is flip
    assert recipe.schedule.steps == 1000
    assert recipe.objective.norm == "mse"
    if name == "celeba64":
        assert recipe.data.crop == (57, 25, 128, 128)  # rows 57..184, columns 25..152: the box around (121, 89)


def test_the_demo_is_trained_with_unsquared_norms_which_flow_maps_do_not_have() -> None:
    own, squared = read_recipe("digits"), read_recipe("digits", ["objective.norm=mse"])
    assert own.objective.build() == objective("both+gradient", norm="l2")
    assert squared.objective.build() == objective("both+gradient", norm="mse")
    for norm in ("l2", "mse"):
        recipe = read_recipe("digits", ["objective.name=flow-map", f"objective.norm={norm}"])
        assert recipe.objective.build() == objective("flow-map")


def test_any_field_can_be_overridden() -> None:
    texts = ["head=velocity", "optimizer.learning_rate=3e-4", "network.multipliers=[1,2,4]", "schedule.name=cosine"]
    recipe = read_recipe("digits", texts)
    assert recipe.head == "velocity"
    assert recipe.optimizer.learning_rate == 3e-4
    assert recipe.network.multipliers == (1, 2, 4)
    assert recipe.schedule.name == "cosine"
    changed = {name for name, _, _ in differences(read_recipe("digits"), recipe)}
    assert changed == {"head", "optimizer.learning_rate", "network.multipliers", "schedule.name"}
    fields = {
        "head": "velocity",
        "optimizer.learning_rate": 3e-4,
        "network.multipliers": (1, 2, 4),
        "schedule": {"name": "cosine"},
    }
    assert read_recipe("digits", fields=fields) == recipe
    assert read_recipe(read_recipe("digits"), texts) == recipe


NAMES = ["photos #1", "2024", "on", "null", "~", "1e3", "2024-01-02", "a: b", "[x", "'q'", " x ", "1_000", "- a", "&a"]
"""Names of folders that YAML reads as something other than this text."""


@pytest.mark.parametrize("name", NAMES)
def test_the_value_of_a_text_field_is_the_text(name: str, tmp_path: Path) -> None:
    recipe = read_recipe("digits", [f"data.source={name}", f"name={name}"])
    assert (recipe.data.source, recipe.name) == (name, name)
    assert read_recipe("digits", [f"data.split={name}"]).data.split == name
    assert read_recipe({}, [f"data={name}", "size=8"]).data.source == name
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert read_recipe(tmp_path / "recipe.yaml") == recipe


def test_values_of_other_fields_are_yaml() -> None:
    texts = ["data.size=[8, 16]", "data.labels=on", "data.crop=[1,2,3,4]", "data.limit=null", "ema.warmup=false"]
    recipe = read_recipe("digits", [*texts, "data.label_column=null", "schedule={name: cosine, steps: 9}"])
    assert (recipe.data.size, recipe.data.labels, recipe.data.crop) == ((8, 16), True, (1, 2, 3, 4))
    assert (recipe.data.limit, recipe.data.label_column, recipe.ema.warmup) == (None, None, False)
    assert (recipe.schedule.name, recipe.schedule.steps) == ("cosine", 9)
    assert read_recipe("digits", ["schedule=linear"]).schedule.name == "linear"


def test_text_fields_of_a_yaml_file_need_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: 0x10\ndata: {source: 2024, split: on, size: 8, label_column: null, limit: 5}\n")
    recipe = read_recipe(path)
    assert (recipe.name, recipe.data.source, recipe.data.split) == ("0x10", "2024", "on")
    assert (recipe.data.label_column, recipe.data.limit) == (None, 5)
    path.write_text("data: 1_000\nsize: 8\n")
    assert read_recipe(path).data.source == "1_000"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stepz=3", "did you mean 'steps'"),
        ("trainning.steps=3", "did you mean 'training'"),
        ("hed=both", "did you mean 'head'"),
        ("head=bothh", "did you mean 'both'"),
        ("head=tangent", "did you mean 'both+tangent'"),
        ("schedule.name=arcc", "did you mean 'arc'"),
        ("objective.name=bth", "did you mean 'both'"),
        ("objective.norm=mze", "did you mean 'mse'"),
        ("network.name=unett", "did you mean 'unet'"),
        ("training.steps=abc", "training.steps"),
        ("training.steps=0", "training.steps"),
        ("training.precision=fp16", "training.precision"),
        ("optimizer.betas=[0.9]", "optimizer.betas"),
        ("optimizer.warmup=soon", "optimizer.warmup"),
        ("training.accumulate=3", "equal parts"),
        ("objective.name=hybrid", "head=both+variance"),
        ("data.source", "section.field=value"),
        ("training=5", "training"),
    ],
)
def test_an_unusable_field_is_an_error_of_one_line(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("+", r"\+")) as raised:
        read_recipe("digits", [override])
    assert "\n" not in str(raised.value)


def test_a_missing_or_malformed_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'digits'"):
        read_recipe("digit")
    with pytest.raises(InputError, match="no recipe file"):
        read_recipe(str(tmp_path / "none.yaml"))
    (tmp_path / "broken.yaml").write_text("a: [1,\n")
    with pytest.raises(InputError, match="not valid YAML"):
        read_recipe(str(tmp_path / "broken.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not text in UTF-8"):
        read_recipe(str(tmp_path / "binary.yaml"))
    with pytest.raises(InputError, match="size is one value, 8, and has no fields"):
        read_recipe("digits", ["data.size.height=3"])
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="mapping"):
        read_recipe(str(tmp_path / "list.yaml"))
    (tmp_path / "empty.yaml").write_text("name: x\ntraining: {steps: 1}\n")
    with pytest.raises(InputError, match="'data' is missing"):
        read_recipe(str(tmp_path / "empty.yaml"))


def test_a_section_by_its_name_and_its_fields_are_set_together_in_any_order() -> None:
    given = ["objective=flow-map", "objective.options.diagonal=0.5", "data=digits", "data.size=8", "data.channels=1"]
    recipe = read_recipe("digits", given)
    assert recipe.objective.model_dump(exclude_unset=True) == {"name": "flow-map", "options": {"diagonal": 0.5}}
    assert (recipe.data.source, recipe.data.size, recipe.data.channels) == ("digits", 8, 1)
    assert read_recipe("digits", given[::-1]) == recipe
    photos = read_recipe("digits", fields={"data": Path("photos"), "data.size": 8, "data.channels": 1})
    assert photos.data.source == "photos"
    assert read_recipe("digits", ["schedule.steps=100", "schedule=arc"]).schedule.steps == 100


def test_overrides_leave_the_given_mapping_unchanged() -> None:
    fields = read_recipe("digits").model_dump()
    before = Recipe.model_validate(fields)
    read_recipe(fields, ["training.steps=7"])
    assert Recipe.model_validate(fields) == before


# --- recipes in Python -------------------------------------------------------------------------------------------


def test_a_recipe_needs_data_and_size_only() -> None:
    recipe = Recipe(data="photos/", size=64)
    assert (recipe.data.source, recipe.data.size, recipe.data.channels) == ("photos/", 64, 3)
    assert recipe == Recipe("photos/", size=64, channels=3)
    assert Recipe(data=Path("photos"), size=64) == Recipe("photos", size=64)


@pytest.mark.parametrize(
    "recipe",
    [
        lambda: Recipe(DataSpec(source="photos", size=64, channels=1)),
        lambda: Recipe(DataSpec(source="photos", size=64), channels=1),
        lambda: Recipe({"source": "photos", "channels": 1}, size=64),
        lambda: Recipe.model_validate({"data": "photos", "size": 64, "channels": 1}),
    ],
)
def test_data_may_be_a_path_a_spec_or_a_mapping(recipe: Any) -> None:
    assert recipe() == Recipe("photos", size=64, channels=1)


def test_a_section_may_be_a_mapping_or_a_name() -> None:
    recipe = Recipe("photos", size=64, schedule="cosine", objective="noise", training={"steps": 7})
    assert (recipe.schedule.name, recipe.objective.name, recipe.training.steps) == ("cosine", "noise", 7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trainin": {}}, "unknown field 'trainin'; did you mean 'training'"),
        ({"siz": 64}, "unknown field 'siz'; did you mean 'size'"),
        ({"training": {"stepz": 1}}, "unknown field 'training.stepz'; did you mean 'steps'"),
        ({"data": {"source": "photos", "size": 64, "chanels": 3}}, "'data.chanels'; did you mean 'channels'"),
        ({"data": {"source": "photos", "size": 32}, "size": 64}, "size=64 and data.size=32 differ"),
        ({"data": None}, "'data' is missing"),
        ({"size": 8, "network": {"arguments": {"a": object()}}}, "can be stored"),
        ({"size": 8, "network": {"name": "torch.nn:Identity", "dropout": 0.1, "channels": 3}}, "are channels, dropout"),
    ],
)
def test_a_wrong_field_in_python_is_an_input_error_of_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        Recipe(**{"data": "photos", **fields})
    assert "\n" not in str(raised.value)


def test_a_misspelt_field_of_the_data_is_an_input_error_of_one_line() -> None:
    with pytest.raises(InputError, match="data: unknown field 'siz'; did you mean 'size'") as raised:
        DataSpec(source="photos", siz=64)  # type: ignore[call-arg]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("size", "levels", "resolutions"),
    [(64, 4, (16,)), (8, 2, (8,)), (96, 4, (12,)), (256, 4, ()), (16, 1, (16,)), ((28, 40), 3, (14,))],
)
def test_automatic_attention_is_at_the_largest_resolution_of_at_most_16_pixels(
    size: Any, levels: int, resolutions: tuple[int, ...]
) -> None:
    recipe = Recipe("photos", size=size, network={"multipliers": [1] * levels})
    assert recipe.network.attention == "auto"
    assert recipe.resolved().network.attention == resolutions


@pytest.mark.parametrize(("steps", "warmup"), [(9, 0), (1000, 100), (100_000, 5000)])
def test_automatic_warm_up_is_a_tenth_of_the_run_and_at_most_that_of_ddpm(steps: int, warmup: int) -> None:
    recipe = Recipe("photos", size=64, training={"steps": steps})
    assert recipe.resolved().optimizer.warmup == warmup


def test_another_network_replaces_the_fields_of_the_unet(tmp_path: Path) -> None:
    recipe = read_recipe("digits", ["network.arguments.bias=false", "network.name=torch.nn:Identity"])
    dumped = recipe.model_dump()["network"]
    assert dumped == {"name": "torch.nn:Identity", "arguments": {"bias": False}}
    (tmp_path / "saved.yaml").write_text(recipe.to_yaml())
    assert read_recipe(tmp_path / "saved.yaml") == recipe
    changed = {name for name, _, _ in differences(read_recipe("digits"), recipe)}
    assert "network.name" in changed


def test_the_recipe_of_a_unet_is_written_as_in_version_0_1() -> None:
    fields = read_recipe("digits").model_dump(mode="json")
    assert list(fields["network"]) == ["channels", "multipliers", "blocks", "attention", "dropout"]
    assert list(fields["objective"]) == ["name", "gamma", "norm", "variance"]


def test_every_field_is_described() -> None:
    def check(section: Any, path: str) -> None:
        for name, field in section.model_fields.items():
            nested = getattr(field.annotation, "model_fields", None)
            assert nested or field.description, f"{path}{name}"
            if nested:
                check(field.annotation, f"{path}{name}.")

    check(Recipe, "")


def test_recipes_are_hashable_and_sections_frozen() -> None:
    assert len({read_recipe("digits"), read_recipe("digits"), read_recipe("cifar10")}) == 2
    with pytest.raises(ValueError, match="frozen"):
        read_recipe("digits").training.steps = 3


def test_reading_a_recipe_starts_no_accelerator() -> None:
    code = "import sys, quarterarc.training.recipe_text; print({'torch', 'accelerate'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


IMPORT_PATHS = {
    "objective": {"name": "code_of_a_stranger:run", "options": {"command": "touch called"}},
    "schedule": {"name": "code_of_a_stranger:run"},
    "network": {"name": "code_of_a_stranger:run", "arguments": {"command": "touch called"}},
    "head": "code_of_a_stranger:run+variance",
}


@pytest.mark.parametrize("section", IMPORT_PATHS)
def test_reading_and_showing_a_recipe_neither_imports_nor_calls_its_code(
    section: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "open('imported', 'w')\ndef run(*values, **options): open('called', 'w')\n"
    (tmp_path / "code_of_a_stranger.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = Recipe.model_validate({"data": "digits", "size": 8, "channels": 1, section: IMPORT_PATHS[section]})
    (tmp_path / "x.yaml").write_text(recipe.to_yaml())
    assert read_recipe(tmp_path / "x.yaml") == recipe
    done = cli("train", "x.yaml", "--show")
    assert (done.returncode, "code_of_a_stranger:run" in done.stdout) == (0, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code_of_a_stranger.py", "x.yaml"]


@pytest.mark.parametrize("field", ["objective.name", "schedule.name", "network.name", "head"])
@pytest.mark.parametrize("path", ["module:", ":name", "a b:c", "a:b:c", "a..b:c"])
def test_the_form_of_an_import_path_is_checked(field: str, path: str) -> None:
    with pytest.raises(InputError, match=r"is not an import path: write package\.module:name"):
        read_recipe("digits", fields={field: path})


@pytest.mark.parametrize("value", [torch.zeros(40, 40), "a\nb" * 100, list(range(999))])
def test_messages_are_one_short_line_whatever_the_value(value: Any) -> None:
    for fields in ({"training": {"steps": value}}, {"training": value}, {"data": {"source": "digits", "size": value}}):
        with pytest.raises(InputError) as raised:
            Recipe.model_validate({"data": "digits", **fields})
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 250


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [1, 2]])
def test_images_in_memory_are_an_argument_of_training(images: Any) -> None:
    with pytest.raises(InputError, match=r"qa\.train\(recipe, out, data=images\)"):
        Recipe(data=images, size=8)


@pytest.mark.parametrize("text", ["1e-3", "1E+3", "-2e5"])
def test_numbers_with_an_exponent_need_no_point(text: str, tmp_path: Path) -> None:
    texts = ["network.name=package.module:Net", f"network.arguments.x={text}", f"network.arguments.y=[{text}]"]
    recipe = read_recipe("digits", texts)
    assert recipe.network.arguments == {"x": float(text), "y": [float(text)]}
    objective = read_recipe("digits", ["objective.name=a.b:c", f"objective.options.x={text}"]).objective
    assert objective.options == {"x": float(text)}
    path = tmp_path / "mine.yaml"
    path.write_text(f"data: digits\nsize: 8\nnetwork: {{name: 'a.b:c', arguments: {{x: {text}, y: '{text}'}}}}\n")
    assert read_recipe(path).network.arguments == {"x": float(text), "y": text}
    saved = read_recipe(path)
    path.write_text(saved.to_yaml())
    assert read_recipe(path) == saved


def test_another_name_of_the_network_resets_its_arguments() -> None:
    other = read_recipe("digits", ["network.name=a.b:Net", "network.arguments.width=3"])
    assert read_recipe(other, ["network.name=unet"]).network == Recipe("digits", size=8).network
    assert read_recipe(other, ["network.name=a.b:Other"]).network.arguments == {}
    assert read_recipe(other, ["network.name=a.b:Net", "network.arguments.depth=1"]).network.arguments == {
        "width": 3,
        "depth": 1,
    }
    digits = read_recipe("digits")
    assert read_recipe("digits", ["network.name=unet"]) == digits
    assert read_recipe(digits.model_dump(), ["network.name=unet"]) == digits


def test_fields_by_position_are_an_error_that_names_them() -> None:
    with pytest.raises(InputError, match=r"given by name: DataSpec\(source=\.\.\., split=\.\.\.\)"):
        DataSpec("photos")  # type: ignore[call-arg]


ODD_NAMES = (
    "2024", "null", "true", "~", "1e3", "0x10", "012", "1_000", "1:30", "2024-01-01", ".inf", "on", "photos #1", "a: b",
    "[x]", "{x}", "a=b", " lead", "trail ", "\u00fcber", "new\nline", "*", "- a", "'q'", '"', "!!int", "&a", "%a", "@a",
    "\t", "a\x01b", "\x7f", "\u2028", "?",
)  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_source_has_any_name_that_a_file_system_allows(name: str, tmp_path: Path) -> None:
    """On the command line, in a recipe that is written and read again, and bare in a YAML file where it is a scalar."""
    recipe = read_recipe("digits", [f"data.source={name}"])
    assert recipe.data.source == name
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
    if name in ODD_NAMES[4:12]:
        (tmp_path / "bare.yaml").write_text(f"data:\n  source: {name}\n  size: 8\n", encoding="utf-8")
        assert read_recipe(tmp_path / "bare.yaml").data.source == name


def test_a_source_whose_name_is_not_utf_8_gets_one_line() -> None:
    with pytest.raises(InputError, match=r"data\.source: .* unicode"):
        read_recipe("digits", ["data.source=bad\udcff"])


def test_heads_of_attention_and_recomputation_are_fields_that_reach_the_network() -> None:
    from quarterarc.training.network import recipe_network

    recipe = read_recipe("digits", ["network.head_channels=16", "training.recompute=true"])
    network = recipe_network(recipe, 1, 2, None)
    assert isinstance(network, UNet)
    assert network.config["head_channels"] == 16
    assert recipe.model_dump()["network"]["head_channels"] == 16
    assert Recipe(**recipe.model_dump()) == recipe
    assert network.recompute
    plain = recipe_network(read_recipe("digits"), 1, 2, None)
    assert isinstance(plain, UNet)
    assert plain.config["head_channels"] is None
    assert not plain.recompute
    assert plain.state_dict().keys() == network.state_dict().keys()
    with pytest.raises(InputError, match=r"head_channels 5 must divide the widths"):
        recipe_network(read_recipe("digits", ["network.head_channels=5"]), 1, 2, None)
    for value in ("0", "-1", "1.5", "all"):
        with pytest.raises(InputError, match=r"network\.head_channels"):
            read_recipe("digits", [f"network.head_channels={value}"])
    with pytest.raises(InputError, match=r"training\.recompute=true is for the U-Net"):
        read_recipe({"data": "digits", "size": 8, "network": "a.module:Net", "training": {"recompute": True}})
