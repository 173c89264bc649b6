"""Models on the Hugging Face Hub: a repository's files at one commit, and a folder as a new commit.

The cache, its variable and the meaning of offline are those of `ggm_image.io.download`. Only safetensors, YAML, JSON,
text and PNG files are downloaded, never a pickle. ``HF_ENDPOINT`` names another server, ``HF_TOKEN`` or
``hf auth login`` the account.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ggm_image.errors import UserError
from ggm_image.io.download import cache_dir, offline_variable
from ggm_image.runtime.streams import is_terminal

FILES = (
    "config.yaml",
    "model.safetensors",
    "tokenizer/config.yaml",
    "tokenizer/model.safetensors",
    "tokenizer/tokenizer.json",
    "README.md",
    "LICENSE",
    "quality.json",
)
"""What is downloaded from a repository; the first two must be there."""
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_commits: dict[tuple[str, ...], str] = {}


@dataclass(frozen=True)
class Snapshot:
    """A repository's files on this machine."""

    folder: Path
    repository: str
    revision: str


def is_repository(name: str) -> bool:
    """Whether a text has the form ``owner/name`` or ``owner/name@revision``."""
    return re.fullmatch(rf"{_NAME}/{_NAME}(@[A-Za-z0-9._/-]+)?", name) is not None and ".." not in name


def snapshot(name: str) -> Snapshot:
    """The files of a repository in the user's cache, downloaded at the first use.

    A branch or tag is looked up once per process: all of a run sees the same commit.
    """
    repository, _, revision = name.partition("@")
    revision = revision or "main"
    folder, endpoint = cache_dir() / "hub", os.environ.get("HF_ENDPOINT", "")
    key = (str(folder), endpoint, repository, revision)
    with _explained(name):
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars

        if not is_terminal(sys.stderr) and not are_progress_bars_disabled():
            disable_progress_bars()
        found = Path(
            snapshot_download(
                repository,
                revision=_commits.get(key, revision),  # the commit of the first look-up: a branch may move meanwhile
                cache_dir=folder,
                allow_patterns=list(FILES),
                endpoint=endpoint or None,
                local_files_only=bool(offline_variable()),
            )
        )
    for file in FILES[:2]:
        if not (found / file).is_file():
            fix = "give a repository that `ggm-image push` wrote"
            raise UserError(
                f"a repository of a model or tokenizer holds {' and '.join(FILES[:2])}", f"{name} has no {file}", fix
            )
    _commits[key] = found.name
    return Snapshot(found, repository, found.name)


def upload(folder: Path, name: str, *, message: str, private: bool = False) -> tuple[str, str]:
    """Upload a folder's files as one commit; the repository is created where there is none.

    Returns:
        The address of the repository and the commit hash.
    """
    if variable := offline_variable():
        raise UserError(f"{variable} forbids the network", f"asked to upload to {name}", f"unset {variable}")
    with _explained(name):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="ggm-image")
        url = api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    return str(url), str(commit.oid)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line."""
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError("huggingface_hub is not installed", name, "pip install huggingface_hub") from error
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise UserError("the repository has no such revision", name, "check it, or leave out @...") from error
    except errors.GatedRepoError as error:
        raise UserError("the repository asks for consent", name, "accept its terms on the Hub, and log in") from error
    except errors.RepositoryNotFoundError as error:
        fix = "check the name; for a private one log in with `hf auth login` or set HF_TOKEN"
        raise UserError("no such folder here, and no such repository on the Hub", name, fix) from error
    except errors.LocalEntryNotFoundError as error:
        if variable := offline_variable():
            raise UserError(
                f"the repository is not in the cache and {variable} is set", name, f"unset {variable}, or give a folder"
            ) from error
        fix = "check the path or the network"
        raise UserError("no such folder here, and the Hub cannot be reached", name, fix) from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError("the Hub needs an account", name, "log in with `hf auth login`, or set HF_TOKEN") from error
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        fix = "log in with `hf auth login` or set HF_TOKEN" if status in (401, 403) else "try again later"
        why = f"HTTP {status}" if status else str(error).splitlines()[0]
        raise UserError("the Hub refused the request", f"{name}: {why}", fix) from error
    except errors.HFValidationError as error:
        raise UserError("a repository is called owner/name", f"got {name!r}", "see huggingface.co") from error
    except OSError as error:
        raise UserError("the Hub cannot be reached", f"{name}: {error}", "check the network") from error
    except Exception as error:
        # The HTTP library's own errors: which library it is depends on the version of huggingface_hub.
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
            raise
        raise UserError("the Hub cannot be reached", f"{name}: {error}", "check the network") from error
