"""Sending a folder to the Hugging Face hub."""

import re
from pathlib import Path

from ..core.errors import RkdError
from ..storage.optional import optional
from ..storage.text import shown

COMMIT = "Exported by rkd"


def check_repository(name: str) -> None:
    """Raise RkdError unless `name` is OWNER/NAME, and huggingface_hub is there: before anything is computed."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise RkdError(f"--push {shown(name)}: expected OWNER/NAME, as in --push me/small-robust-net")
    optional("huggingface_hub", "hub", "--push")


def push(folder: Path, name: str) -> str:
    """Make the repository NAME if it is not there, and put the folder's files into it in one commit. Returns the
    commit's address. The user's token and the hub's address are huggingface_hub's own (`hf auth login`, HF_TOKEN,
    HF_ENDPOINT). Raises RkdError with what to type; the folder stays as it is."""
    hub = optional("huggingface_hub", "hub", "--push")
    api = hub.HfApi(library_name="rkd")
    try:
        api.create_repo(name, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=str(folder), commit_message=COMMIT)
    except Exception as error:  # the hub's, the network's and the token's errors have no common class
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RkdError(
            f"{folder} is complete, but could not be sent to {name}: {why[:300]}. Log in with `hf auth login` (or "
            f"set HF_TOKEN), then type: hf upload {name} {folder}"
        ) from None
    return str(commit.commit_url)
