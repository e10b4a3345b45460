"""Tests use their own cache, no network, and real data only where it is given."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINESIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; skips where it is not there."""
    found = os.environ.get("FINESIGHT_TEST_DATA")
    if not found or not Path(found).is_dir():
        pytest.skip("FINESIGHT_TEST_DATA is not set")
    return Path(found)
