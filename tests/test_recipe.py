"""Recipes say everything, ignore nothing, and survive being written and read."""

import pytest

from quarterarc.common.errors import InputError
from quarterarc.training.recipe import Recipe, differences, read_recipe, recipe_names


def test_every_shipped_recipe_is_valid_and_round_trips(tmp_path):
    assert recipe_names() == ["celeba64", "church256", "cifar10", "cifar10-short", "digits"]
    for name in recipe_names():
        recipe = read_recipe(name)
        assert recipe.name == name
        (tmp_path / "saved.yaml").write_text(recipe.to_yaml())
        assert read_recipe(str(tmp_path / "saved.yaml")) == recipe


@pytest.mark.parametrize(
    ("name", "multipliers", "dropout", "rate", "batch", "decay", "flip"),
    [
        ("cifar10", (1, 2, 2, 2), 0.1, 2e-4, 128, 0.9999, True),
        ("celeba64", (1, 2, 2, 2, 4), 0.1, 2e-4, 128, 0.9999, True),
        ("church256", (1, 1, 2, 2, 4, 4), 0.0, 2e-5, 64, 0.9999, True),
    ],
)
def test_published_settings(name, multipliers, dropout, rate, batch, decay, flip):
    """Ho et al. 2020, appendix B, and the configurations that DDIM published for its checkpoints."""
    recipe = read_recipe(name)
    assert recipe.network.channels == 128
    assert recipe.network.blocks == 2
    assert recipe.network.attention == (16,)
    assert recipe.network.multipliers == multipliers
    assert recipe.network.dropout == dropout
    assert recipe.optimizer.learning_rate == rate
    assert recipe.optimizer.clip == 1.0
    assert recipe.training.batch == batch
    assert recipe.ema.decay == decay
    assert recipe.data.flip is flip
    assert recipe.schedule.steps == 1000
    if name == "celeba64":
        assert recipe.data.crop == (57, 25, 128, 128)  # rows 57..184, columns 25..152: the box around (121, 89)


def test_any_field_can_be_overridden():
    recipe = read_recipe(
        "digits",
        ["head=velocity", "optimizer.learning_rate=3e-4", "network.multipliers=[1,2,4]", "schedule.name=cosine"],
    )
    assert recipe.head == "velocity"
    assert recipe.optimizer.learning_rate == 3e-4
    assert recipe.network.multipliers == (1, 2, 4)
    assert recipe.schedule.name == "cosine"
    changed = {name for name, _, _ in differences(read_recipe("digits"), recipe)}
    assert changed == {"head", "optimizer.learning_rate", "network.multipliers", "schedule.name"}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.stepz=3", "did you mean 'steps'"),
        ("trainning.steps=3", "did you mean 'training'"),
        ("hed=both", "did you mean 'head'"),
        ("head=bothh", "did you mean 'both'"),
        ("schedule.name=arcc", "did you mean 'arc'"),
        ("objective.name=bth", "did you mean 'both'"),
        ("objective.norm=mze", "did you mean 'mse'"),
        ("training.steps=abc", "training.steps"),
        ("training.steps=0", "training.steps"),
        ("training.precision=fp16", "training.precision"),
        ("optimizer.betas=[0.9]", "optimizer.betas"),
        ("training.accumulate=3", "equal parts"),
        ("objective.name=hybrid", "head=both+variance"),
        ("data.source", "section.field=value"),
        ("training=5", "training"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(override, says):
    with pytest.raises(InputError, match=says.replace("+", r"\+")) as refused:
        read_recipe("digits", [override])
    assert "\n" not in str(refused.value)


def test_a_missing_or_broken_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="did you mean 'digits'"):
        read_recipe("digit")
    with pytest.raises(InputError, match="no recipe file"):
        read_recipe(str(tmp_path / "none.yaml"))
    (tmp_path / "broken.yaml").write_text("a: [1,\n")
    with pytest.raises(InputError, match="not valid YAML"):
        read_recipe(str(tmp_path / "broken.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no text in UTF-8"):
        read_recipe(str(tmp_path / "binary.yaml"))
    with pytest.raises(InputError, match="size is one value, 8, and has no fields"):
        read_recipe("digits", ["data.size.height=3"])
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="mapping"):
        read_recipe(str(tmp_path / "list.yaml"))
    (tmp_path / "empty.yaml").write_text("name: x\ntraining: {steps: 1}\n")
    with pytest.raises(InputError, match="'data' is missing"):
        read_recipe(str(tmp_path / "empty.yaml"))


def test_overrides_leave_the_given_mapping_alone():
    fields = read_recipe("digits").model_dump()
    before = Recipe.model_validate(fields)
    read_recipe(fields, ["training.steps=7"])
    assert Recipe.model_validate(fields) == before
