"""Data sets on the Hugging Face hub, streamed through `datasets` (the extra `tunesmith[hub]`)."""

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import UserError


@dataclass(frozen=True, slots=True)
class HubDataSet:
    """`hf://owner/name[:config][@split]`; the default split is `train`."""

    repository: str
    config: str | None
    split: str

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        return f"hf://{self.repository}{config}@{self.split}"

    @classmethod
    def parse(cls, given: str) -> "HubDataSet":
        parts = re.fullmatch(r"(?:hf://)?([\w.-]+(?:/[\w.-]+)?)(?::([^@/]+))?(?:@(.+))?", given)
        if parts is None:
            raise UserError(
                f"{given} does not name a hub data set. Write hf://owner/name, hf://owner/name:config@split."
            )
        return cls(parts[1], parts[2], parts[3] or "train")


def commit(data_set: HubDataSet) -> str:
    """The commit at the head of the data set's repository: it identifies the content.

    Raises:
        UserError: the hub cannot be reached, or has no such data set.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return str(HfApi().dataset_info(data_set.repository).sha)
    except RepositoryNotFoundError:
        raise UserError(
            f"{data_set}: neither a local path nor a data set on the hub that you may read. If it is a path, check "
            "its spelling; if it is private, run `hf auth login`."
        ) from None
    except Exception as error:
        raise _unreachable(data_set, error) from error


def stream(data_set: HubDataSet) -> Iterator[dict[str, Any]]:
    """The rows in order, fetched lazily, at the commit that `commit` returns.

    Raises:
        UserError: `datasets` is not installed, or the hub cannot be reached, or the config or the split does not exist.
    """
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f'{data_set} is read through `datasets`, which is not installed: pip install "tunesmith[hub]"')
    from datasets import load_dataset

    revision = commit(data_set)
    try:
        rows = load_dataset(
            data_set.repository, data_set.config, split=data_set.split, streaming=True, revision=revision
        )
        yield from map(dict, rows)
    except Exception as error:
        raise _unreachable(data_set, error) from error


def _unreachable(data_set: HubDataSet, error: Exception) -> UserError:
    """One error for the many types that the libraries raise, with the first line of their message."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"{data_set} cannot be read from the hub: {first} Check the name, config (:name) and split (@name), and "
        "the network; or download the files and name them."
    )
