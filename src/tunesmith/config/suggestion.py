"""A suggested recipe from the data: every value with its unit and the reason for it in *these* rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.base import Base
from tunesmith.config.recipe import Recipe
from tunesmith.data.check import find_problem
from tunesmith.data.example import Malformed
from tunesmith.data.format_detection import objective_of_rows
from tunesmith.data.prepare import resolve
from tunesmith.data.read import Row, read
from tunesmith.data.render import Renderer, Rendering
from tunesmith.data.report import SHOWN, Reason, Reasons
from tunesmith.data.row_formats import to_example
from tunesmith.data.template import UnusableError
from tunesmith.errors import UserError
from tunesmith.evaluation.gate import GATE_FILE, write_example_gate
from tunesmith.inference.model_reference import ModelReference
from tunesmith.models.load import load_tokenizer
from tunesmith.run import atomic_write, writing

SAMPLED = 2000  # rows that are rendered and tokenized; the rest are only counted
TARGET_HELD_OUT = 300
STEPS = (20, 2000)
TOKENS_PER_STEP = 2048
SMALL = 50_000_000  # parameters; a smaller model trains with a larger learning rate
LOSS_ON = {
    "classification": "a class for each text; evaluate gives accuracy and F1",
    "regression": "a number for each text",
    "token_classification": "a tag for each word",
    "multi_label": "any number of classes for each text",
    "embedding": "a vector for each text; texts of a pair get similar ones",
    "text": "loss on every token of the text",
    "instruction": "loss on the answers only, not on the prompts",
    "dpo": "learns which of two answers is better; docs/preferences.md has others",
    "kto": "learns from answers that are good or bad",
}
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


@dataclass(frozen=True, slots=True)
class DataStatistics:
    """Statistics of the data.

    Attributes:
        format: the detected row format.
        objective: the kind of the objective that trains on such rows.
        rows: the number of rows, malformed ones included.
        malformed: how many of them are malformed.
        lengths: (sampled,) tokens of each rendered example.
        unusable: how many sampled rows cannot be trained on, because the chat template cannot render them, say.
        malformed_reasons: why rows are malformed, the most frequent reason first.
        unusable_reasons: why sampled rows cannot be trained on, the most frequent reason first.
        sampled: how many rows were rendered, or would have been if they were not malformed.
    """

    format: str
    objective: str
    rows: int
    malformed: int
    lengths: NDArray[np.int64]
    unusable: int
    malformed_reasons: tuple[Reason, ...]
    unusable_reasons: tuple[Reason, ...]
    sampled: int

    @property
    def median_length(self) -> int:
        return int(np.median(self.lengths))

    @property
    def tokens(self) -> int:
        """Of all rows, extrapolated from the sampled ones."""
        return round(float(self.lengths.mean()) * (self.rows - self.malformed))


def sample_data(paths: Sequence[str], base: str) -> DataStatistics:
    """Read all rows; render and tokenize the first two thousand.

    Raises:
        UserError: the files or the base cannot be read, or no row is usable.
    """
    renderer = Renderer(load_tokenizer(Base(path=base)))
    rows = read(paths, Path.cwd())
    first = list(islice(rows, SAMPLED))
    format, kind = objective_of_rows([row for row in first[:100] if isinstance(row, Row)])
    objective = resolve(Recipe.load({"data": {"train": list(paths)}, "objective": {"kind": kind}})).objective
    lengths: list[int] = []
    malformed, unusable = Reasons(), Reasons()
    for count, row in enumerate(chain(first, rows), 1):
        example = row if isinstance(row, Malformed) else to_example(row, format)
        if isinstance(example, Malformed):
            malformed.add(example.source, example.reason)
        elif count <= len(first):
            try:
                lengths += _lengths(renderer, objective.render(renderer, example))
            except UnusableError as error:
                unusable.add(example.source, str(error))
    if not lengths:
        listed = "".join(f"\n  {reason}" for reason in (*malformed.by_count(), *unusable.by_count())[:SHOWN])
        raise UserError(f"None of the first {len(first):,} rows can be used for training. Fix them:{listed}")
    return DataStatistics(
        format,
        kind,
        count,
        malformed.rows,
        np.asarray(lengths),
        unusable.rows,
        malformed.by_count(),
        unusable.by_count(),
        len(first),
    )


def _lengths(renderer: Renderer, renderings: Sequence[Rendering]) -> list[int]:
    """Tokens of each rendering.

    Raises:
        UnusableError: a run would refuse one of them before its first step.
    """
    texts = [text for rendering in renderings for text in rendering.completions or (rendering,)]
    tokens = renderer.tokenize_many(texts)
    for rendering, tokenized in zip(texts, tokens, strict=True):
        if (problem := find_problem(renderer, rendering, tokenized)) is not None:
            raise UnusableError(problem)
    return [len(ids) for ids, _ in tokens]


def init(data: str | Sequence[str], output: str | Path = "recipe.yaml", base: str = "embedded") -> DataStatistics:
    """Look at the data and write a recipe, with the reason for each value, and beside it a gate to begin with.

    Args:
        data: files, directories, globs, or a hub data set.
        output: the recipe, which must not exist. `gate.yaml` is written beside it, unless there is one.
        base: `embedded`, a model's directory, or a hub name.

    Returns:
        The statistics that the recipe is based on.

    Raises:
        UserError: the output exists or cannot be written, or as `sample_data` raises.
    """
    target = Path(output)
    if target.exists():
        raise UserError(f"{target} already exists. Choose another output.")
    text, seen = suggest([data] if isinstance(data, str) else data, base)
    with writing(target):
        with atomic_write(target) as file:
            file.write(text)
        write_example_gate(target.with_name(GATE_FILE))
    return seen


def suggest(paths: Sequence[str], base: str = "embedded") -> tuple[str, DataStatistics]:
    """A commented recipe for these files, and the statistics it is based on.

    Raises:
        UserError: as `sample_data` raises.
    """
    seen = sample_data(paths, base)
    share, kept = _held_out(seen.rows)
    limit = _max_length(seen.lengths)
    over = int((seen.lengths > limit).sum())
    steps, passes = _steps(round(seen.tokens * (1 - share)))
    rate, why = (1e-3, "a small model needs a larger rate than a large one") if _is_small(base) else (2e-4, "usual")
    if seen.objective in ("dpo", "kto"):
        rate, why = rate / 10, "a tenth of what instructions need: preferences change a model fast"
    longest = f"tokens; the longest sampled row has {int(seen.lengths.max()):,}"
    longer_rows = f"; {over:,} of {len(seen.lengths):,} sampled rows are longer" if over else ""
    lines = [
        (
            f"# By `tunesmith init`, from {seen.rows:,} rows ({seen.format}), about {_rounded(seen.tokens):,} tokens.",
            "",
        ),
        ("# Look:  tunesmith data show recipe.yaml --tokens", ""),
        ("# Train: tunesmith train recipe.yaml", ""),
        ("", ""),
        (f"base: {_quoted(base)}", "or a model's directory, or a hub name"),
        ("", ""),
        ("data:", ""),
        (f"  train: {_paths(paths)}", ""),
        (f"  held_out: {share:g}", f"share of the rows kept for evaluation: about {kept:,}"),
        (f"  max_length: {limit}", longest + longer_rows),
        *([("  overflow: drop", "or refuse, truncate, split; always counted")] if over else []),
        *([("  skip_unusable: true", "some rows cannot be trained on; left out and counted")] if seen.unusable else []),
        ("", ""),
        ("method:", "which weights are trained; or {kind: full}"),
        ("  kind: lora", ""),
        ("  rank: 16", "capacity of the adapter; more for much new behavior"),
        ("  alpha: 32", "the adapter's output is scaled by alpha / rank"),
        ("  target_modules: all-linear", ""),
        ("", ""),
        (f"objective: {{kind: {seen.objective}}}", LOSS_ON.get(seen.objective, "docs/objectives.md")),
        ("", ""),
        ("train:", ""),
        (f"  steps: {steps}", passes),
        (f"  tokens_per_step: {TOKENS_PER_STEP}", "without padding"),
        (f"  learning_rate: {_short(rate)}", f"peak; {why}"),
        ("  schedule: cosine", "falls to a tenth of the peak"),
        ("  seed: 0", ""),
        ("  precision: auto", "bf16 if this machine is faster with it"),
    ]
    return "".join(f"{field:<30}# {reason}\n" if reason else f"{field}\n" for field, reason in lines), seen


def _short(rate: float) -> str:
    """`1e-3` for 0.001."""
    return f"{rate:.0e}".replace("e-0", "e-")


def _held_out(rows: int) -> tuple[float, int]:
    """A rounded share that holds out about three hundred rows, at least 1 % and at most 20 %."""
    share = min(0.2, max(0.01, TARGET_HELD_OUT / max(1, rows)))
    share = float(f"{share:.1g}")
    return share, round(share * rows)


def _max_length(lengths: NDArray[np.int64]) -> int:
    """The smallest of the usual lengths that covers 99 % of the rows."""
    needed = float(np.quantile(lengths, 0.99))
    return next((length for length in LENGTHS if length >= needed), LENGTHS[-1])


def _steps(tokens: int) -> tuple[int, str]:
    """The steps of three passes over the data, within bounds, and a comment about them."""
    steps = min(STEPS[1], max(STEPS[0], math.ceil(3 * tokens / TOKENS_PER_STEP)))
    passes = steps * TOKENS_PER_STEP / max(1, tokens)
    return steps, f"optimizer steps; about {passes:.2g} passes over the rows"


def _is_small(base: str) -> bool:
    from transformers import AutoConfig

    from tunesmith.models.load import locate

    config: Any = AutoConfig.from_pretrained(locate(ModelReference.find(base).base)).get_text_config()
    return bool(12 * config.num_hidden_layers * config.hidden_size**2 < SMALL)


def _rounded(value: int) -> int:
    return int(float(f"{value:.2g}"))


def _paths(paths: Sequence[str]) -> str:
    return _quoted(paths[0]) if len(paths) == 1 else "[" + ", ".join(map(_quoted, paths)) + "]"


def _quoted(text: str) -> str:
    """The text as YAML: plain if it is clearly a path or a name, else quoted."""
    plain = all(character.isalnum() or character in "/._-~" for character in text) and text[:1].isalnum()
    return text if plain and not text.isdigit() else "'" + text.replace("'", "''") + "'"
