"""A prompt as a file: what a model reads before a question.

system: You answer questions about {product}. Be brief.
variables: {product: the billing API}
guardrails: {topics: [billing, invoices], refusal: I can only help with billing.}
examples: {rows: runs/faq, k: 4, choose: similar}
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from tunesmith.config.data import Data
from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import Strict
from tunesmith.config.strict_file import checked_values, mapping_in
from tunesmith.config.yaml_text import to_yaml
from tunesmith.data.example import Example, Source
from tunesmith.data.examples import examples, training_examples
from tunesmith.data.report import DataReport
from tunesmith.errors import UserError
from tunesmith.inference.model import Model
from tunesmith.inference.result_cache import digest_of
from tunesmith.prompting.sections import Examples, Guardrails
from tunesmith.prompting.template import fill, literal, names_in
from tunesmith.run import atomic_write, writing
from tunesmith.subjects.subject import ChatRenderer, PromptedSubject, Subject

PROMPT_FILE = "prompt.yaml"
"""The prompt in the directory of a run."""

INPUT = "input"
"""The variable of `user` that stands for the user's text."""

INLINE = 32
"""Pairs that are written into the file of a prompt; more go into a file beside it."""

VERSION_LENGTH = 12
"""Hexadecimal digits."""


class Prompt(Strict):
    """What a model reads before a chat: a system prompt with variables and guardrails, few-shot examples, and a
    template of the question."""

    system: str | None = None
    """The system prompt, with `{variables}`; a doubled brace is the brace itself."""

    user: str = "{input}"
    """The user's last turn; `{input}` is what the user wrote."""

    variables: dict[str, str] = Field(default={})
    """Values of the variables, by name."""

    guardrails: Guardrails | None = None
    """Allowed topics, and what is said to everything else."""

    examples: Examples | None = None
    """Few-shot examples."""

    @field_validator("variables", mode="before")
    @classmethod
    def _numbers_as_texts(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: str(value) if isinstance(value, int | float) else value for name, value in values.items()}

    @model_validator(mode="after")
    def _can_be_filled(self) -> "Prompt":
        wrong = [name for name in self.variables if not name.isidentifier() or name == INPUT]
        if wrong:
            raise ValueError(f"variables.{wrong[0]}: choose another name: letters, digits and _, and not {INPUT}")
        guarded = "" if self.guardrails is None else self.guardrails.text
        for field, text, more in (
            ("system", self.system or "", {}),
            ("guardrails", guarded, {}),
            ("user", self.user, {INPUT: ""}),
        ):
            try:
                fill(text, {**self.variables, **more})
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from None
        if INPUT not in names_in(self.user):
            raise ValueError("user: it has no {input}, so the model would not read what the user wrote")
        return self

    @classmethod
    def load(cls, path: str | Path) -> "Prompt":
        """Read a prompt.

        Args:
            path: of a YAML file; of a `.txt` or `.md` file, which is the system prompt, word for word; or of a run,
                whose `prompt.yaml` it is.

        Returns:
            The prompt.

        Raises:
            UserError: it cannot be read, or a field is wrong; the message names both.
        """
        file = Path(path).expanduser()
        if file.is_dir():
            if not (file / PROMPT_FILE).exists():
                raise UserError(f"{path} has no {PROMPT_FILE}. `tunesmith prompt search` writes one with --output.")
            file = file / PROMPT_FILE
        if file.suffix in (".txt", ".md"):
            return cls(system=literal(_text_of(file)))
        values = mapping_in(file, "a prompt", ", ".join(cls.model_fields))
        return checked_values(cls, values, file.name, file.parent.absolute())

    @property
    def system_text(self) -> str | None:
        """The system prompt with its guardrails and its variables' values; None if there is neither."""
        parts = (self.system, None if self.guardrails is None else self.guardrails.text)
        return "\n\n".join(fill(part.strip(), self.variables) for part in parts if part) or None

    def user_text(self, question: str) -> str:
        """The user's turn.

        Args:
            question: what the user wrote; braces in it are left as they are.

        Returns:
            The text that the model reads.
        """
        return fill(self.user, {**self.variables, INPUT: question})

    @cached_property
    def pool(self) -> tuple[Example, ...]:
        """The rows that examples are chosen from, as they are read; none if the prompt has no examples.

        Raises:
            UserError: they cannot be read.
        """
        asked = self.examples
        if asked is None:
            return ()
        if asked.rows is not None:
            return tuple(_rows_of(asked.rows))
        return tuple(
            example_of(pair.question, pair.answer, Source("given", number))
            for number, pair in enumerate(asked.given, 1)
        )

    @cached_property
    def version(self) -> str:
        """A hash of all that determines the text: templates, values, and the example rows, wherever they are stored.

        Raises:
            UserError: the rows cannot be read.
        """
        shown: Any = None
        if self.examples is not None:
            settings = self.examples.model_dump(exclude={"given", "rows"})
            k = len(self.pool) if self.examples.k is None else self.examples.k
            shown = settings | {"k": k, "rows": [[row.messages, row.tools] for row in self.pool]}
        own = self.model_dump(exclude={"examples"})
        return digest_of([own, shown])[:VERSION_LENGTH]

    def before(self, subject: Subject) -> PromptedSubject:
        """A subject with the prompt before its chats.

        Args:
            subject: that answers.

        Returns:
            The subject under the same name.

        Raises:
            UserError: example rows cannot be read, or the model writes no text or does not read examples.
        """
        from tunesmith.prompting.prompted import Prompted  # which imports this module
        from tunesmith.prompting.shots import Shots

        return Prompted(subject, self, Shots.of(self), subject.name)

    def renderer(self, model: Model) -> ChatRenderer:
        """What puts the prompt before the chats of a model, whose weights are not loaded for that.

        Args:
            model: that writes text.

        Returns:
            The renderer.

        Raises:
            UserError: example rows cannot be read, or the model writes no text or does not read examples.
        """
        from tunesmith.prompting.prompted import PromptRenderer  # which imports this module

        return PromptRenderer.of(self, model)

    def described(self) -> dict[str, Any]:
        """What a result says about its prompt.

        Returns:
            `version`, `system`, `user`, and `examples` (`k`, `choose`; None: there are none).

        Raises:
            UserError: the rows cannot be read.
        """
        shown = self.examples
        k = None if shown is None else len(self.pool) if shown.k is None else shown.k
        return {
            "version": self.version,
            "system": self.system_text,
            "user": self.user,
            "examples": None if shown is None else {"k": k, "choose": shown.choose},
        }

    def with_given(
        self,
        rows: Sequence[Example],
        k: int | None = None,
        choose: str = "random",
        seed: int = 0,
        encoder: str | None = None,
    ) -> "Prompt":
        """The same prompt with other examples.

        Args:
            rows: each a question and its answer.
            k: how many are shown; None: all.
            choose: which, as `Examples.choose`.
            seed: of a random choice.
            encoder: by whose vectors questions are compared; None: by their words.

        Returns:
            A copy.

        Raises:
            UserError: there is no such choice.
        """
        pairs = [[str(turn["content"]) for turn in row.messages or ()] for row in rows]
        given = [{"question": question, "answer": answer} for question, answer in pairs]
        values = {"given": given, "k": k, "choose": choose, "seed": seed, "encoder": encoder}
        own = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**own, "examples": checked_values(Examples, values, "examples")})

    def save(self, path: str | Path) -> None:
        """Write the prompt; many examples go into a file beside it.

        Args:
            path: of a YAML file; or a directory, which then has it as `prompt.yaml`.

        Raises:
            UserError: it cannot be written.
        """
        file = Path(path) / PROMPT_FILE if Path(path).is_dir() else Path(path)
        values = self.model_dump(mode="json", exclude_defaults=True)
        if self.examples is not None:
            values["examples"] = self._stored_examples(file)
        with writing(file), atomic_write(file) as out:
            out.write(to_yaml(values))

    def _stored_examples(self, file: Path) -> dict[str, Any]:
        """The section `examples` in a file; its rows are named from there."""
        assert self.examples is not None
        values = self.examples.model_dump(mode="json", exclude_defaults=True)
        if self.examples.rows is not None:
            if "://" in self.examples.rows:
                return values
            rows, directory = Path(self.examples.rows), file.parent.absolute()
            return values | {"rows": str(rows.relative_to(directory) if rows.is_relative_to(directory) else rows)}
        if len(self.examples.given) <= INLINE:
            return values
        beside = file.with_name(f"{file.stem}.examples.jsonl")
        with writing(beside), atomic_write(beside) as out:
            out.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in values.pop("given"))
        return {"rows": beside.name, "k": len(self.examples.given), **values}


def example_of(question: str, answer: str, source: Source) -> Example:
    """A question and its answer as a row.

    Args:
        question: what the user says.
        answer: what the assistant says.
        source: where they come from.

    Returns:
        The row.
    """
    return Example(source, messages=({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


def _rows_of(where: str) -> list[Example]:
    """The rows of a file, or the training rows of a recipe or a run.

    Raises:
        UserError: they cannot be read, or there are none.
    """
    path = Path(where)
    recipe = path / "recipe.yaml" if path.is_dir() else path
    if recipe.suffix in (".yaml", ".yml") and recipe.exists():
        loaded = Recipe.load(recipe)
        return training_examples(loaded.data, loaded.objective.formats)
    return list(examples(Data(train=[where]), (), [where], DataReport()))


def _text_of(file: Path) -> str:
    """The text of a file.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not text:
        raise UserError(f"{file} is empty. Write the system prompt into it.")
    return text
