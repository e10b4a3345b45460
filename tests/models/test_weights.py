"""The guarded loader: what it reads, what it refuses and why, and strictness to the last key."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from finesight.errors import ModelError
from finesight.models import weights


class Exploit:
    """A pickle that would run a command when opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.second.weight = self.first.weight


def test_reads_safetensors_and_both_torch_formats(tmp_path: Path) -> None:
    state = small().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    wrapped = {"state_dict": state, "best_prec1": 91.8}
    torch.save(wrapped, tmp_path / "c.th", _use_new_zipfile_serialization=False)
    torch.save({"module." + name: tensor for name, tensor in state.items()}, tmp_path / "d.pt")
    for name in ("a.safetensors", "b.pth", "c.th", "d.pt"):
        read = weights.read(tmp_path / name)
        assert list(read) == list(state) or sorted(read) == sorted(state)
        assert all(torch.equal(read[key], state[key]) for key in state), name


def test_module_prefix_is_cut_only_where_all_have_it(tmp_path: Path) -> None:
    save_file({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert set(weights.read(tmp_path / "x.safetensors")) == {"module.a", "b"}


@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: {"state_dict": bad}])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path, wrap: Callable[[object], object]) -> None:
    mark = tmp_path / "ran"
    torch.save(wrap(Exploit(mark)), tmp_path / "x.pth")
    with pytest.raises(ModelError, match=r"x\.pth: holds more than tensors \(posix\.system\).*run code"):
        weights.read(tmp_path / "x.pth")
    (tmp_path / "y.pt").write_bytes(pickle.dumps(Exploit(mark)))
    with pytest.raises(ModelError, match=r"y\.pt"):
        weights.read(tmp_path / "y.pt")
    assert not mark.exists()


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(ModelError, match=rf"{name}.*fetch it again"):
            weights.read(tmp_path / name)
    torch.save(small().state_dict(), tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"cut\.pth.*fetch it again"):
        weights.read(tmp_path / "cut.pth")
    torch.save({"state_dict": {"epoch": 3}}, tmp_path / "numbers.pth")
    with pytest.raises(ModelError, match="no state dict"):
        weights.read(tmp_path / "numbers.pth")
    with pytest.raises(ModelError, match="no such weight file"):
        weights.read(tmp_path / "absent.pth")
    (tmp_path / "x.onnx").touch()
    with pytest.raises(ModelError, match=r"'\.onnx'"):
        weights.read(tmp_path / "x.onnx")


def test_load_strict_copies_everything() -> None:
    source, target = small(), small()
    for tensor in source.state_dict().values():
        tensor.add_(1)
    weights.load_strict(target, source.state_dict())
    assert weights.state_hash(target) == weights.state_hash(source)


def test_load_strict_lists_every_problem_and_loads_nothing() -> None:
    model = small()
    before = weights.state_hash(model)
    state = small().state_dict()
    state["0.weight"] = torch.ones(2, 4)
    del state["0.bias"], state["1.running_mean"]
    state["extra"] = torch.zeros(1)
    state["1.weight"] = torch.full((2,), 9.0, dtype=torch.float64)
    with pytest.raises(ModelError) as caught:
        weights.load_strict(model, state, source="file.pth")
    text = str(caught.value)
    assert "file.pth: 2 missing: 0.bias, 1.running_mean." in text
    assert "1 unexpected: extra." in text
    assert "0.weight (has [2, 4], the model [2, 3])" in text
    assert "1.weight (torch.float64 into torch.float32)" in text
    assert weights.state_hash(model) == before


def test_load_strict_allows_exactly_the_named_keys_to_be_missing() -> None:
    state = small().state_dict()
    del state["0.bias"]
    weights.load_strict(small(), state, allow_missing=("0.bias",))
    with pytest.raises(ModelError, match=r"0\.bias"):
        weights.load_strict(small(), state, allow_missing=("0.weight",))


def test_half_precision_is_read_into_single_but_not_the_reverse() -> None:
    state = small().state_dict()
    state = {name: t.bfloat16() if t.is_floating_point() else t for name, t in state.items()}
    model = small()
    weights.load_strict(model, state)
    assert torch.equal(model[0].weight, state["0.weight"].float())
    with pytest.raises(ModelError, match="lose digits"):
        weights.load_strict(small().to(torch.bfloat16), small().state_dict())


def test_tied_weights_may_come_under_one_name_but_not_differ() -> None:
    model = Tied()
    state = {name: tensor.clone() + 1 for name, tensor in model.state_dict().items()}
    del state["second.weight"]
    weights.load_strict(model, state)
    assert torch.equal(model.second.weight, state["first.weight"])
    state["second.weight"] = state["first.weight"] + 1
    with pytest.raises(ModelError, match=r"first\.weight and second\.weight"):
        weights.load_strict(model, state)


def test_state_hash_sees_names_types_shapes_and_values() -> None:
    base = {"a": torch.arange(6, dtype=torch.float32).view(2, 3), "b": torch.tensor(3)}
    digest = weights.state_hash(base)
    assert len(digest) == 32
    assert weights.state_hash(dict(reversed(base.items()))) == digest
    changed = [
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"].view(3, 2), "b": base["b"]},
        {"a": base["a"].view(torch.int32), "b": base["b"]},
        {"a": base["a"] + torch.eye(2, 3) * 1e-6, "b": base["b"]},
        {"a": base["a"], "b": torch.tensor(4)},
    ]
    assert len({digest, *map(weights.state_hash, changed)}) == 6
    images = torch.randn(2, 3, 4, 4)
    last = images.to(memory_format=torch.channels_last)
    assert weights.state_hash({"x": images}) == weights.state_hash({"x": last})
    assert weights.state_hash({"x": images.bfloat16()}) != weights.state_hash({"x": images})


def folder_with(tmp_path: Path, config: dict[str, object], *files: str) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in files:
        (tmp_path / name).touch()
    return tmp_path


def test_folder_with_code_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "vit", "auto_map": {"AutoModel": "modeling.Evil"}}
    with pytest.raises(ModelError, match=r"config\.json has auto_map.*run Python code"):
        weights.check_folder(folder_with(tmp_path, config, "model.safetensors"))


def test_folder_with_code_in_the_preprocessor_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"model_type": "vit"}, "model.safetensors")
    (folder / "preprocessor_config.json").write_text('{"auto_map": {"AutoImageProcessor": "x.Y"}}')
    with pytest.raises(ModelError, match=r"preprocessor_config\.json has auto_map"):
        weights.check_folder(folder)


def test_folder_with_pickle_weights_is_refused_and_can_be_converted(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"model_type": "vit"})
    state = small().state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickle only \(pytorch_model\.bin\).*convert"):
        weights.check_folder(folder)
    weights.convert(folder)
    weights.check_folder(folder)
    assert weights.state_hash(weights.read(folder / "model.safetensors")) == weights.state_hash(state)


def test_other_unusable_folders_say_why(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        weights.check_folder(tmp_path)
    folder = folder_with(tmp_path, {"model_type": "vit"})
    with pytest.raises(ModelError, match="holds no weights"):
        weights.check_folder(folder)
    assert weights.check_folder(folder, needs_weights=False)["model_type"] == "vit"
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter"):
        weights.check_folder(folder, needs_weights=False)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not readable as JSON"):
        weights.check_folder(folder)


def test_a_published_torch_file_is_read(real_data: Path) -> None:
    state = weights.read(real_data / "cifar10" / "resnet20-12fca82f.th")
    learnable = [t for name, t in state.items() if "running" not in name and "num_batches" not in name]
    assert sum(tensor.numel() for tensor in learnable) == 269_722
    assert state["conv1.weight"].shape == (16, 3, 3, 3)
