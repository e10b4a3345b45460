"""The Hub: an unreachable one is one line within seconds, a cached model is used, the rest is explained."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finesight.errors import ModelError
from finesight.models import hub
from finesight.models.backbones import ModelConfig, build
from tests.models.folders import save

ASK = """
import sys, time
from finesight.models import hub
from finesight.errors import ModelError
start = time.perf_counter()
try:
    hub.fetch("owner/name")
except ModelError as error:
    print(error)
print(time.perf_counter() - start)
"""


def ask(**environment: str) -> tuple[list[str], float]:
    """What a fresh process prints when it fetches a model, and the seconds that took."""
    clean = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    *lines, seconds = done.stdout.strip().splitlines()
    return lines, float(seconds)


@pytest.mark.parametrize(
    "environment",
    [
        {"HF_ENDPOINT": "http://127.0.0.1:9"},
        {"HF_HUB_OFFLINE": "1"},
        {"HF_ENDPOINT": "http://no-such-host.invalid"},
    ],
)
def test_unreachable_is_one_line_with_the_offline_way(environment: dict[str, str], tmp_path: Path) -> None:
    lines, seconds = ask(**environment, HF_HUB_CACHE=str(tmp_path))
    assert len(lines) == 1
    assert "owner/name" in lines[0]
    assert "--model.name FOLDER" in lines[0]
    assert seconds < 9


def test_a_silent_server_is_given_up_in_time(tmp_path: Path) -> None:
    """A socket that accepts and never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        lines, seconds = ask(HF_ENDPOINT=endpoint, HF_HUB_CACHE=str(tmp_path))
    assert len(lines) == 1
    assert seconds < 9


def test_a_stuck_name_lookup_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    stuck = SimpleNamespace(model_info=lambda *a, **k: time.sleep(5))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stuck)
    monkeypatch.setattr(hub, "DEADLINE_S", 0.2)
    start = time.perf_counter()
    with pytest.raises(ModelError, match=r"no answer in 0\.2 s"):
        hub.fetch("owner/name")
    assert time.perf_counter() - start < 2


def hub_with(monkeypatch: pytest.MonkeyPatch, folder: Path, *names: str) -> list[dict[str, Any]]:
    """Put a Hub in place that answers with these names and "downloads" `folder`; returns the downloads."""
    import huggingface_hub

    info = SimpleNamespace(sha="abc123", siblings=[SimpleNamespace(rfilename=name) for name in names])
    calls: list[dict[str, Any]] = []

    def download(repository: str, **options: Any) -> str:
        calls.append({"repository": repository, **options})
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=lambda *a, **k: info))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


@pytest.mark.parametrize("name", ["owner/name", "hf:owner/name"])
def test_a_hub_model_is_fetched_at_its_commit_and_built(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save("vit", tmp_path, ["a", "b"])
    names = ("config.json", "model.safetensors", "pytorch_model.bin", "evil.py")
    calls = hub_with(monkeypatch, tmp_path, *names)
    model = build(ModelConfig(name=name, revision="main"), ["a", "b"])
    assert model.spec.name == name
    (call,) = calls
    assert call["revision"] == "abc123"
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in call["allow_patterns"])


def test_pickle_only_repositories_are_refused_before_any_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = hub_with(monkeypatch, tmp_path, "config.json", "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"owner/name: its weights are pickle only \(pytorch_model\.bin\)"):
        build(ModelConfig(name="owner/name"), ["a", "b"])
    assert calls == []


def test_auto_map_on_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "x.Y"}}')
    (tmp_path / "model.safetensors").touch()
    hub_with(monkeypatch, tmp_path, "config.json", "model.safetensors")
    with pytest.raises(ModelError, match="auto_map"):
        build(ModelConfig(name="owner/name"), ["a", "b"])
