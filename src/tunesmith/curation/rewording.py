"""How a row's prompt is put in other words: by templates, by a model, or through another language."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.cache_directory import cache_directory
from tunesmith.data.appended_rows import AppendedRows
from tunesmith.data.example import Malformed, Row
from tunesmith.errors import UserError
from tunesmith.inference.model import Model
from tunesmith.inference.openai_client import OpenAIClient
from tunesmith.inference.sampling import Sampling
from tunesmith.server_address import is_address
from tunesmith.subjects.local_subject import LocalSubject
from tunesmith.subjects.served_subject import ServedSubject
from tunesmith.subjects.subject import Subject

PARAPHRASE = "Write the following in other words, with the same meaning. Reply with the new text alone.\n\n{text}"
TRANSLATE = "Translate the following into {language}. Reply with the translation alone.\n\n{text}"

Reword = Callable[[Sequence[str]], list[str]]
"""From texts to texts in other words."""


def by_template(template: str) -> Reword:
    """A text around a prompt: `Please help me: {prompt}`.

    Args:
        template: with `{prompt}`.

    Raises:
        UserError: it has no `{prompt}`.
    """
    if "{prompt}" not in template:
        raise UserError(f"--template {template!r} has no {{prompt}}, where the row's own prompt goes.")
    return lambda texts: [template.replace("{prompt}", text) for text in texts]


def by_model(writer: "Writer") -> Reword:
    """A paraphrase.

    Args:
        writer: that answers.
    """
    return lambda texts: writer.answers([PARAPHRASE.format(text=text) for text in texts])


def through(writer: "Writer", language: str, back_to: str) -> Reword:
    """A translation, translated back (Sennrich et al. 2016).

    Args:
        writer: that answers.
        language: into which it is translated first.
        back_to: the language of the texts.
    """

    def reword(texts: Sequence[str]) -> list[str]:
        there = writer.answers([TRANSLATE.format(language=language, text=text) for text in texts])
        return writer.answers([TRANSLATE.format(language=back_to, text=text) for text in there])

    return reword


class Writer:
    """A model whose answers are kept in the user's cache, so that what was interrupted is not computed again.

    Args:
        name: a run, a model directory, a hub or short name, or `http://HOST/v1#MODEL`.
        seed: of the answers.
        most_tokens: of an answer.

    Raises:
        UserError: there is no such model.
    """

    def __init__(self, name: str, seed: int, most_tokens: int = 256) -> None:
        self.name = name
        self._sampling = Sampling(most_tokens, temperature=0.7, top_p=0.95, seed=seed)
        self._subject = _subject(name)
        key = hashlib.sha256(f"{name} {self._subject.identity} {self._sampling}".encode()).hexdigest()[:32]
        self._path = cache_directory() / "augmented" / f"{key}.jsonl"

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """Answers to prompts, each computed once.

        Args:
            prompts: the user's turns.
        """
        with AppendedRows[Mapping[str, Any]].opened(self._path, _kept, dict) as file:
            known = {entry["prompt"]: str(entry["answer"]) for entry in file.entries}
            new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
            chats = [[{"role": "user", "content": prompt}] for prompt in new]
            found = self._subject.answers(chats, self._sampling) if new else []
            for prompt, answer in zip(new, found, strict=True):
                # what was cut off at the limit is no paraphrase
                known[prompt] = "" if answer.finish_reason == "length" else answer.text.strip()
                file.append({"prompt": prompt, "answer": known[prompt]})
        return [known[prompt] for prompt in prompts]

    def close(self) -> None:
        """Free the model."""
        self._subject.close()


def _subject(name: str) -> Subject:
    if is_address(name):
        return ServedSubject(name, OpenAIClient.of(name), 8)
    return LocalSubject(Path(name).name, Model(name), keeps=False)


def _kept(row: Row | Malformed) -> Mapping[str, Any]:
    if isinstance(row, Malformed) or not isinstance(row.values, dict) or not {"prompt", "answer"} <= row.values.keys():
        raise UserError(f"{row.source} is no kept answer. Remove the file.")
    return row.values


def with_prompt(values: Any, prompt: str, new: str) -> Any | None:
    """A row with another prompt.

    Args:
        values: the row's columns.
        prompt: the text that is replaced wherever it is a whole value: the last question, or the labeled text.
        new: the text in its place.

    Returns:
        The row; None if no value is that text, as where a prompt is made of several columns.
    """
    changed = _replaced(values, prompt, new)
    return None if json.dumps(changed) == json.dumps(values) else changed


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(inner, old, new) for name, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, old, new) for inner in value]
    return new if value == old else value
