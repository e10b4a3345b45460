"""Configuration: strict types, every problem at once, nearest names, flags over YAML."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from finesight import config, recipes
from finesight.config import Section
from finesight.errors import ConfigError
from finesight.optimization import TrainConfig


class Inner(Section):
    lr: float = Field(0.1, gt=0, description="Learning rate")
    epochs: int = Field(3, ge=1, description="Passes")
    clip: float | None = Field(None, description="Norm")
    schedule: Literal["constant", "cosine"] = Field("constant", description="Course")
    targets: list[str] | None = Field(None, description="Names")
    compile: bool = Field(False, description="Compile")
    names: dict[str, str] | None = Field(None, description="Other names")


class Outer(Section):
    seed: int = Field(0, description="Seed")
    train: Inner = Inner()


def test_flags_override_yaml() -> None:
    flags = config.parse_flags(["--train.lr", "1e-3", "--seed=4"], Outer)
    built = config.build(Outer, {"train": {"lr": 0.5, "epochs": 9}}, flags)
    assert (built.train.lr, built.train.epochs, built.seed) == (1e-3, 9, 4)


def test_a_mapping_is_written_as_pairs_or_json_and_replaces_the_one_before() -> None:
    for text in ("cat=animal,sea lion=an animal", '{"cat": "animal", "sea lion": "an animal"}'):
        flags = config.parse_flags(["--train.names", text], Outer)
        built = config.build(Outer, {"train": {"names": {"dog": "pet", "cat": "pet"}, "lr": 0.5}}, flags)
        assert built.train.names == {"cat": "animal", "sea lion": "an animal"}
        assert built.train.lr == 0.5
    assert config.build(Outer, {"train": {"names": {"dog": "pet"}}}, {"train": {"names": None}}).train.names is None
    for wrong in ("cat", '{"cat": 1}', "{cat}"):
        with pytest.raises(ConfigError, match=r"--train\.names"):
            config.parse_flags(["--train.names", wrong], Outer)


def test_a_mapping_to_lists_is_written_as_pairs_too() -> None:
    class Words(Section):
        words: dict[str, list[str]] = {}  # noqa: RUF012 (never mutated)

    for text in ("cat=kitten,dog=puppy,cat=animal", '{"cat": ["kitten", "animal"], "dog": ["puppy"]}'):
        found = config.parse_flags(["--words", text], Words)
        assert found == {"words": {"cat": ["kitten", "animal"], "dog": ["puppy"]}}
    with pytest.raises(ConfigError, match="cat"):
        config.parse_flags(["--words", "cat"], Words)


def test_every_problem_is_reported_at_once_with_path_and_nearest_name() -> None:
    tree = {"sede": 1, "train": {"lr": "fast", "epochs": 0, "shedule": "cosine", "schedule": "cosin"}}
    with pytest.raises(ConfigError) as caught:
        config.build(Outer, tree)
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    assert "sede: unknown option; did you mean 'seed'?" in text
    assert "train.shedule: unknown option; did you mean 'train.schedule'?" in text
    assert "train.lr: input should be a valid number (given: 'fast')" in text
    assert "train.epochs: input should be greater than or equal to 1 (given: 0)" in text
    assert "'constant' or 'cosine'" in text


def test_every_bad_flag_is_reported_at_once() -> None:
    words = ["--train.lrr", "1", "--train.epochs", "many", "--seed", "stray", "--train.clip"]
    with pytest.raises(ConfigError) as caught:
        config.parse_flags([*words], Outer)
    text = str(caught.value)
    assert "--train.lrr: unknown option; did you mean 'train.lr'?" in text
    assert "--train.epochs: 'many' is not INTEGER" in text
    assert "--seed: 'stray' is not INTEGER" in text
    assert "--train.clip: a value is missing" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--train.compile"], True),
        (["--train.compile", "false"], False),
        (["--train.compile=true"], True),
        (["--train.compile", "--seed", "1"], True),
    ],
)
def test_boolean_flags(words: list[str], expected: bool) -> None:
    assert config.parse_flags(words, Outer)["train"]["compile"] is expected


def test_lists_none_and_negative_numbers() -> None:
    flags = config.parse_flags(["--train.targets", "q,v", "--train.clip", "none", "--seed", "-3"], Outer)
    assert flags == {"train": {"targets": ["q", "v"], "clip": None}, "seed": -3}


@pytest.mark.parametrize("value", ["true", "'3'", "2.5", "[1]"])
def test_yaml_types_are_not_coerced(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"train: {{epochs: {value}}}")
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        config.build(Outer, config.read_yaml(path))


def test_yaml_reads_1e_3_as_a_number_and_refuses_a_key_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("train: {lr: 1e-3}")
    assert config.read_yaml(path) == {"train": {"lr": 0.001}}
    path.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(ConfigError, match="stands twice"):
        config.read_yaml(path)


def test_round_trip_through_yaml(tmp_path: Path) -> None:
    built = config.build(Outer, {"train": {"lr": 1e-05, "targets": ["a"], "clip": 1.0}})
    path = tmp_path / "a.yaml"
    path.write_text(config.to_yaml(built))
    assert config.build(Outer, config.read_yaml(path)) == built


def test_impossible_combinations_are_refused() -> None:
    with pytest.raises(ConfigError, match="8 micro-batches cannot be cut from a batch of 4"):
        config.build(TrainConfig, {"batch_size": 4, "accumulation": 8})


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_valid_and_every_option_is_documented(name: str) -> None:
    _, base = recipes.read(name)
    kind = recipes.task_class(base).Config
    built = config.build(kind, base)
    assert built.description
    undocumented = [path for path, field in config.sections(kind) if not field.description]
    assert not undocumented
    assert "--train.lr" in config.describe(kind, built)


def test_an_unknown_recipe_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cifar10-mlp'"):
        recipes.read("cifar10-mpl")
