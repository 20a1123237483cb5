"""The `data` section of a recipe: where the rows come from, and how they become tokens."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from tunesmith.config.mix import MixSource, Order, Overflow, check_shares
from tunesmith.config.registry import Strict


class Data(Strict):
    """Where the examples come from, and how they become tokens."""

    train: list[str] = Field(min_length=1)
    """A path, a glob, a directory, a hub data set (`hf://owner/name`), or a list of these."""

    mix: dict[str, MixSource] = Field(default={})
    """Several sources by name, in place of `train`: what each contributes to the training tokens, by share, epochs and
    caps. Default: the rows of `train`, each once an epoch."""

    order: Order = "as_drawn"
    """The order of an epoch's rows. `as_drawn`: that of `train.shuffle`, sources mixed. `by_length`: easy to hard, the
    shortest first (curriculum; Platanios et al. 2019). `by_source`: one source of `mix` after the other, each in the
    order of `train.shuffle`."""

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

    overflow: Overflow = "auto"
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
    forgetting (Robins 1995; Scialom et al. 2022). Raw text among them is trained on as text. It is short for a source
    of `mix` with `share: replay_share`, `held_out: false` and `overflow: split`. Default: none."""

    replay_share: float = Field(default=0.1, gt=0, lt=1)
    """The replayed share of all training tokens, if `replay` is set. 10 %: a small share kept most of the earlier
    knowledge (Ibrahim et al. 2024, section 6)."""

    checks: bool | list[str] = False
    """Check the rows before the first step, with these checks of `tunesmith data check`, or all of them (`true`). A row
    marked by one of severity error stops the run before it starts; one marked by another is a warning. Off: training
    only refuses what it cannot render. See docs/data-checks.md."""

    clean: bool | dict[str, Literal["drop", "keep", "fix", "mask"]] = False
    """Clean the training rows before the first step, as `tunesmith data clean` does: with its defaults (`true`), or
    with other actions by check (`{truncated_answers: keep}`). Held-out paths are not cleaned; training rows that are
    also in them are dropped. The cleaned file and its ledger stay in `cleaned/`. See docs/data-cleaning.md."""

    cache: bool = True
    """Cache the tokenized rows for the next run. The cache key covers everything that determines them."""

    @property
    def sources(self) -> dict[str, MixSource]:
        """What is trained on, by name: the sources of `mix`, or `train`; and `replay`."""
        found = self.mix or {"train": MixSource(paths=self.train)}
        if not self.replay:
            return found
        replay = MixSource(
            paths=self.replay, share=self.replay_share, held_out=False, format="auto", columns={}, overflow="split"
        )
        return {**found, "replay": replay}

    def of(self, source: MixSource) -> "Data":
        """The section for the rows of one source alone."""
        own = {name: getattr(source, name) for name in ("format", "columns", "overflow")}
        given = {name: value for name, value in own.items() if value is not None}
        return self.model_copy(update={**given, "train": source.paths, "mix": {}, "replay": []})

    @model_validator(mode="before")
    @classmethod
    def _paths_of_the_mix(cls, values: Any) -> Any:
        """With a mix, `train` is what its sources name."""
        if not isinstance(values, dict) or not values.get("mix"):
            return values
        if values.get("train"):
            raise ValueError("mix names the files to train on. Remove data.train, or make it a source of the mix")
        if not isinstance(values["mix"], dict):
            raise ValueError("mix needs a name for each source: mix: {faq: {paths: faq.jsonl, share: 0.9}, …}")
        paths = [path for source in values["mix"].values() for path in _paths_of(source)]
        return {**values, "train": paths or ["?"]}  # a source without paths is refused by its own check

    @model_serializer(mode="wrap")
    def _without_derived(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if self.mix:
            values.pop("train", None)
        return values

    @model_validator(mode="after")
    def _can_be_mixed(self) -> "Data":
        if self.mix and self.replay and "replay" in self.mix:
            raise ValueError(
                "mix has a source named replay, as data.replay is called. Rename it, or remove one of them"
            )
        check_shares(self.sources)
        if self.order == "by_source" and len(self.sources) == 1:
            raise ValueError("order: by_source needs several sources. Name them in data.mix")
        return self

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


def _paths_of(source: Any) -> list[str]:
    """The paths of a source that may not be checked yet."""
    paths = source.paths if isinstance(source, MixSource) else source.get("paths") if isinstance(source, dict) else None
    return [str(path) for path in ([paths] if isinstance(paths, str | Path) else paths or [])]
