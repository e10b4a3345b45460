"""Fetching model files from the Hugging Face Hub, with a deadline and a way out when there is no network."""

import threading
from pathlib import Path
from typing import Any

from finesight.errors import ModelError
from finesight.models.weights import TORCH_SUFFIXES, first_line, no_safetensors

DEADLINE_S = 6.0
_REQUEST_S = 4.0
FILES = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "*.safetensors.index.json",
)


def fetch(repository: str, revision: str | None = None, *, needs_weights: bool = True) -> Path:
    """The local folder of a Hub model: configuration and safetensors weights, downloaded or from the cache.

    Raises `ModelError` in one line, within ten seconds, where the Hub does not answer and the cache is empty,
    and where the repository does not exist, is closed, or has only pickle weights.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [name for name in FILES if needs_weights or "safetensors" not in name]
    try:
        info = _ask(repository, revision)
        names = [entry.rfilename for entry in info.siblings or []]
        if needs_weights and not any(name.endswith(".safetensors") for name in names):
            raise ModelError(no_safetensors(repository, [n for n in names if n.endswith((*TORCH_SUFFIXES, ".pkl"))]))
        return Path(snapshot_download(repository, revision=info.sha, allow_patterns=patterns, etag_timeout=_REQUEST_S))
    except GatedRepoError:
        raise ModelError(
            f"{repository}: the Hub gives it only to users who accepted its terms; accept them on its page "
            "and log in with `hf auth login`, or give a local folder."
        ) from None
    except RevisionNotFoundError:
        raise ModelError(
            f"{repository}: has no revision {revision!r}; leave model.revision out for the newest."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(f"{repository}: no such model on the Hub, or a private one; check OWNER/NAME.") from None
    except ModelError:
        raise
    except Exception as error:
        # Anything else is the network in one of its many forms (which HTTP library it is may change).
        if isinstance(error, HfHubHTTPError):
            cause = f"it answers {error.response.status_code}"
        else:
            cause = first_line(error)[:100]
        return _cached(repository, revision, patterns, cause or type(error).__name__)


def _ask(repository: str, revision: str | None) -> Any:
    """The Hub's description of a model, or an error before the deadline, whatever sockets do."""
    from huggingface_hub import HfApi

    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(HfApi().model_info(repository, revision=revision, timeout=_REQUEST_S))
        except Exception as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    if not answer:
        raise TimeoutError(f"no answer in {DEADLINE_S:g} s")
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def _cached(repository: str, revision: str | None, patterns: list[str], cause: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=True))
    except Exception:
        raise ModelError(
            f"{repository}: not in the local cache, and the Hub cannot be reached ({cause}). Offline: "
            f"download it elsewhere with `hf download {repository} --local-dir FOLDER`, copy FOLDER here, "
            "and give --model.name FOLDER."
        ) from None
