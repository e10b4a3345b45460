"""Two domains: which images are in which split, and that the target's labels only measure."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finesight.data import domains
from finesight.data.batches import Batches
from finesight.data.domains import DomainDataConfig
from finesight.errors import ConfigError, DataError
from tests import pictures

DIGITS = {"source": "sklearn:digits", "backgrounds": "sklearn:photographs"}


def load(**options: Any) -> Any:
    return domains.load(DomainDataConfig(**options), 0)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.folder(tmp_path_factory.mktemp("data") / "shapes", each=12)


def flat(folder: Path, count: int = 9) -> Path:
    folder.mkdir(parents=True)
    for row in range(count):
        Image.fromarray(np.full((20, 20, 3), row, np.uint8)).save(folder / f"{row}.png")
    return folder


def test_digits_over_photographs_are_the_target() -> None:
    data = load(**DIGITS, limit_train=200, limit_test=50)
    assert list(data) == ["train", "validation", "target_train", "source_test", "test"]
    assert {split: data[split]["domain"][0] for split in data} == {
        "train": "source", "validation": "source", "source_test": "source", "target_train": "target", "test": "target",
    }  # fmt: skip
    assert [*data["target_train"]["label"]] == [*data["train"]["label"], *data["validation"]["label"]]
    ids = [name for split in data for name in data[split]["id"]]
    assert len(set(ids)) == len(ids)


def test_the_same_seed_makes_the_same_target() -> None:
    one, other = load(**DIGITS, limit_train=60, limit_test=50), load(**DIGITS, limit_train=60, limit_test=50)
    assert one["target_train"][7]["image"].tobytes() == other["target_train"][7]["image"].tobytes()


def test_two_image_folders_are_two_domains(shapes: Path, tmp_path: Path) -> None:
    target = pictures.folder(tmp_path / "other", each=10)
    data = load(source=str(shapes), target=str(target))
    assert data["train"].features["label"].names == data["test"].features["label"].names
    assert len(data["target_train"]) + len(data["test"]) == 10 * len(data["test"].features["label"].names)
    assert not set(data["target_train"]["id"]) & set(data["test"]["id"])


def test_a_flat_folder_is_an_unlabelled_target(shapes: Path, tmp_path: Path) -> None:
    data = load(source=str(shapes), target=str(flat(tmp_path / "scanner")))
    assert set(data["target_train"]["label"]) == {-1}
    assert len(data["target_train"]) == 9
    assert "source_test" not in data
    assert data["test"]["domain"][0] == "source"


def test_folders_that_are_no_classes_can_be_said_to_be_none(shapes: Path, tmp_path: Path) -> None:
    for day in ("day1", "day2"):
        flat(tmp_path / "scanner" / day)
    with pytest.raises(DataError, match="target_labels none"):
        load(source=str(shapes), target=str(tmp_path / "scanner"))
    data = load(source=str(shapes), target=str(tmp_path / "scanner"), target_labels="none")
    assert len(data["target_train"]) == 18
    assert set(data["target_train"]["label"]) == {-1}


def test_a_group_on_both_sides_is_refused(tmp_path: Path) -> None:
    for camera, patients in (("a", range(8)), ("same", range(8)), ("other", range(16))):
        for name in ("x", "y"):
            for patient in patients:
                flat(tmp_path / camera / name / f"patient{patient}{name}", count=2)
    options: dict[str, Any] = {"source": str(tmp_path / "a"), "group": "(patient.+)/", "test": 0.4}
    # The same groups are split the same way in both domains.
    data = load(**options, target=str(tmp_path / "same"))
    assert set(data["test"]["group"]) == set(data["source_test"]["group"])
    with pytest.raises(DataError, match="same origin on both sides"):
        load(**options, target=str(tmp_path / "other"))


def test_target_only_needs_labels(shapes: Path, tmp_path: Path) -> None:
    config = DomainDataConfig(source=str(shapes), target=str(flat(tmp_path / "scanner")))
    with pytest.raises(ConfigError, match="has no labels"):
        domains.load(config, 0, supervised_target=True)


def test_target_only_trains_on_the_target() -> None:
    config = DomainDataConfig(**DIGITS, limit_train=200, limit_test=50)
    data = domains.load(config, 0, supervised_target=True)
    assert {data[split]["domain"][0] for split in ("train", "validation", "test")} == {"target"}
    assert not set(data["train"]["id"]) & set(data["validation"]["id"])


def test_classes_of_the_target_alone_are_refused(shapes: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "other"
    for name in ("x", "circle"):
        flat(stranger / name)
    with pytest.raises(DataError, match="classes that the source does not have"):
        load(source=str(shapes), target=str(stranger))


def test_both_domains_must_be_named_and_all_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        DomainDataConfig().require()
    assert len(error.value.problems) == 2


def test_the_second_set_is_gone_through_without_repetition_whatever_the_workers() -> None:
    import torch

    def batches(workers: int) -> Batches:
        first = {"x": torch.arange(10)}
        return Batches([str(n) for n in range(10)], first, batch_size=4, shuffle=True, workers=workers,
                       second={"other": torch.arange(7)})  # fmt: skip

    plain = [batch for epoch in range(3) for batch in batches(0).epoch(epoch)]
    drawn = torch.cat([batch["other"] for batch in plain]).tolist()
    assert [len(batch["other"]) for batch in plain] == [len(batch["x"]) for batch in plain]
    for start in range(0, 28, 7):
        assert sorted(drawn[start : start + 7]) == list(range(7))
    assert drawn[:7] != drawn[7:14]
    resumed = list(batches(2).epoch(1, 1))
    assert [b["other"].tolist() for b in resumed] == [b["other"].tolist() for b in plain[4:6]]
    shares = [list(batches(0).epoch(1, 0, rank, 2)) for rank in (0, 1)]
    for number, whole in enumerate(plain[3:6]):
        together = shares[0][number]["other"].tolist() + shares[1][number]["other"].tolist()
        assert sorted(together) == sorted(whole["other"].tolist())
    assert plain[-1]["progress"][0].item() == pytest.approx(2 + 2 / 3)


def test_full_ink_needs_digits_on_black(shapes: Path) -> None:
    """Coloured pictures have no ink: the target would be inverted photographs without anything in them."""
    with pytest.raises(DataError, match=r"--data\.ink grey"):
        load(source=str(shapes), backgrounds="sklearn:photographs")
