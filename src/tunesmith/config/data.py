"""The `data` section of a recipe: where the rows come from, and how they become tokens."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tunesmith.config.registry import Strict


class Data(Strict):
    """Where the examples come from, and how they become tokens."""

    train: list[str] = Field(min_length=1)
    """A path, a glob, a directory, a hub data set (`hf://owner/name`), or a list of these."""

    held_out: float | list[str] = 0.05
    """A share of the training rows in [0, 1), or paths. The share is chosen by content hash, so that no row changes
    sides when the file grows. 5 %: enough to see overfitting in a few thousand rows, and little lost for training."""

    folds: int | None = Field(default=None, ge=2, le=100)
    """Cross-validation: train this many times, each time with another part of the rows held out, and once more on all
    rows; that last model is the one to use. `evaluate` scores every row with the model that has not seen it (Stone
    1974). For data with too few rows to hold any out. Replaces `held_out`. Default: one run, no cross-validation."""

    fold: int | None = Field(default=None, ge=1)
    """Which of the `folds` parts is held out, counted from 1. Default: each in turn."""

    format: str = "auto"
    """The rows' format: `messages`, `sharegpt`, `alpaca`, `prompt_completion`, `question_answer`, `text`; or a format
    with targets (classes, values, tags, pairs) that the objective accepts. Default: detected from the columns, and
    reported."""

    columns: dict[str, str] = Field(default={})
    """Names of the columns to read, where they are not the usual ones: `{question: q, answer: reply}`."""

    max_length: int = Field(default=1024, ge=8)
    """The longest example, in tokens. 1,024 is enough for most question–answer rows, and memory grows with it. If it is
    not set and the base has fewer positions, it is the base's number of positions."""

    overflow: Literal["auto", "refuse", "truncate", "split", "drop"] = "auto"
    """What to do with an example longer than `max_length`; such examples are always counted. Default: `refuse` for
    instructions (a truncated answer teaches the model to stop anywhere), `split` for raw text."""

    max_malformed: float = Field(default=0.01, ge=0, le=1)
    """The largest accepted share of malformed rows. 1 %: a few bad lines in a big file are normal; more of them mean a
    wrong format. They are counted and listed in either case."""

    skip_unusable: bool = False
    """Leave out rows that the chat template cannot render or that have no loss tokens. Off: such a row is an error that
    names it, because it usually means a wrong format or template. They are counted and listed in either case."""

    pack: bool = True
    """Pack many examples into one sequence, with exactly separate attention and positions. Off: one per batch."""

    replay: list[str] = Field(default=[])
    """Paths of other rows, such as general text or earlier chats. Some of them are mixed into training, against
    forgetting (Robins 1995; Scialom et al. 2022). Raw text among them is trained on as text. Default: none."""

    replay_share: float = Field(default=0.1, gt=0, lt=1)
    """The replayed share of all training tokens, if `replay` is set. 10 %: a small share kept most of the earlier
    knowledge (Ibrahim et al. 2024, section 6)."""

    cache: bool = True
    """Cache the tokenized rows for the next run. The cache key covers everything that determines them."""

    @model_validator(mode="after")
    def _folds_or_paths(self) -> "Data":
        if self.folds is not None and self.held_out != type(self).model_fields["held_out"].default:
            raise ValueError("folds hold every training row out once. Remove data.held_out, or folds")
        if self.fold is not None and (self.folds is None or self.fold > self.folds):
            raise ValueError(f"fold: {self.fold} is not one of folds: {self.folds}")
        return self

    @field_validator("train", "replay", mode="before")
    @classmethod
    def _one_path(cls, value: Any) -> Any:
        return [str(value)] if isinstance(value, str | Path) else value

    @field_validator("held_out", mode="before")
    @classmethod
    def _share_or_paths(cls, value: Any) -> Any:
        if isinstance(value, str | Path):
            return [str(value)]
        if isinstance(value, int | float) and not 0 <= value < 1:
            raise ValueError("must be a share in [0, 1) of the rows, or paths")
        return value
