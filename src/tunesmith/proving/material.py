"""What two models are compared on: rows with answers, and chats that templates treat differently."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.data import Data
from tunesmith.config.objective import ObjectiveConfig
from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Example, Message, Source
from tunesmith.data.examples import examples, held_out_examples
from tunesmith.data.render import Renderer
from tunesmith.data.report import DataReport
from tunesmith.data.template import Tools, UnusableError
from tunesmith.evaluation.rows import Task, answered, spread, task_of
from tunesmith.objectives.instruction import Instruction
from tunesmith.objectives.text import Text
from tunesmith.run import resolve_run

LONGEST: int = Data.model_fields["max_length"].default
"""Tokens of a row that are compared: the default of the recipe's `data.max_length`."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat whose last turn is not the model's.

    Attributes:
        name: what is special about it, or where it comes from.
        messages: its turns.
        tools: that the model may call.
    """

    name: str
    messages: Sequence[Message]
    tools: Tools = None


@dataclass(frozen=True, slots=True)
class Row:
    """A text whose next tokens are compared.

    Attributes:
        ids: (tokens,) of the whole text.
        marks: the positions of its loss tokens, each after another token.
    """

    ids: NDArray[np.int32]
    marks: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Material:
    """What two models are compared on.

    Attributes:
        origin: where the rows come from, in words.
        rows: texts whose next tokens are compared.
        tasks: questions with their expected answers.
        chats: chats whose token ids are compared.
        texts: raw texts whose token ids are compared.
        not_rendered: the chats that the template rejects, by name.
        unusable: how many of the rows it rejects.
    """

    origin: str
    rows: Sequence[Row]
    tasks: Sequence[Task]
    chats: Sequence[Chat]
    texts: Sequence[str]
    not_rendered: Sequence[str]
    unusable: int


_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


_CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Paris"}},
}


def _turns(*contents: str, system: str | None = None) -> list[Message]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, *({"role": ("user", "assistant")[k % 2], "content": each} for k, each in enumerate(contents))]


EDGE_CHATS = (
    Chat("a system turn", _turns("What is the capital of France?", system="Answer in one word.")),
    Chat("several turns", _turns("Name a color.", "Blue.", "Another one?", "Green.", "And the last?")),
    Chat("several turns after a system turn", _turns("Hello!", "Hello.", "Who are you?", system="You are a parrot.")),
    Chat("an empty answer", _turns("Say nothing.", "", "Now say something.")),
    Chat("unusual characters", _turns("  Ünï¢ödé 🙂 東京\n\n\tdon't x_1 = 12345.67; \\n <b>…</b>")),
    Chat("a tool", _turns("What is the weather in Paris?"), (_WEATHER,)),
    Chat(
        "a call of a tool and its result",
        [
            *_turns("What is the weather in Paris?"),
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "content": '{"degrees": 21}', "tool_call_id": "call00001", "name": "get_weather"},
        ],
        (_WEATHER,),
    ),
)
"""What templates treat differently from a single question."""

QUESTIONS = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("How many days has a week?", "A week has seven days."),
    ("Why is the sky blue?", "Air scatters blue light more than red light, so that it reaches the eye from all sides."),
    ("Write a Python function that adds two numbers.", "def add(a, b):\n    return a + b"),
    ("Translate to German: Good morning.", "Guten Morgen."),
    ("What is 17 + 25?", "17 + 25 = 42."),
    ("Name three fruits.", "Three fruits are apples, pears and plums."),
    ("Who wrote Hamlet?", "William Shakespeare wrote Hamlet."),
)
"""For a model that no run has trained, and without a file of rows."""


def material(name: str, renderer: Renderer, count: int, file: str | None = None) -> Material:
    """What a model is compared on: rows of a file, else its run's held-out rows, else a few questions.

    Args:
        name: of the model: a run, an adapter, a model directory or a base.
        renderer: of the model's tokenizer.
        count: the most rows.
        file: of rows, in any format that training reads.

    Raises:
        UserError: the rows cannot be read or rendered.
    """
    recipe = _recipe(name)
    objective = recipe.objective if recipe is not None else _objective(renderer)
    found, origin = _examples(recipe, objective, file, renderer)
    if objective.rollouts is not None or any(example.completions for example in found):
        found = [chat for chat in map(answered, found) if chat is not None]
        objective = _objective(renderer)
        if not found:
            found, origin = _examples(None, objective, None, renderer)
    picked = [found[index] for index in spread(len(found), count)]
    rows = [_rows(objective, renderer, each) for each in picked]
    chosen = [each for each, own in zip(picked, rows, strict=True) if own is not None]
    chats = [task_of(each) for each in chosen if each.messages is not None]
    asked = [Chat(task.source, task.chat, _tools(chosen, task)) for task in chats]
    edges = EDGE_CHATS if renderer.tokenizer.chat_template else ()
    rendered = [chat for chat in edges if _renders(renderer, chat)]
    return Material(
        origin,
        [row for own in rows for row in own or ()],
        chats,
        [*asked, *rendered],
        [each.text for each in chosen if each.text is not None],
        [chat.name for chat in edges if chat not in rendered],
        len(picked) - len(chosen),
    )


def _recipe(name: str) -> Recipe | None:
    """The recipe of a run."""
    directory = resolve_run(Path(name).expanduser())
    file = directory / "recipe.yaml"
    if not file.exists():
        return None
    recipe = Recipe.load(file)
    recipe.import_code()
    return recipe


def _objective(renderer: Renderer) -> ObjectiveConfig:
    return Instruction() if renderer.tokenizer.chat_template else Text()


def _examples(
    recipe: Recipe | None, objective: ObjectiveConfig, file: str | None, renderer: Renderer
) -> tuple[list[Example], str]:
    if file is not None:
        return list(examples(Data(train=[file]), objective.formats, [file], DataReport())), file
    if recipe is not None and (found := held_out_examples(recipe.data, objective.formats)):
        return found, "held-out rows of the run"
    is_chat = bool(renderer.tokenizer.chat_template) and not isinstance(objective, Text)
    built_in = [
        Example(Source("built in", number), messages=tuple(_turns(*pair)))
        if is_chat
        else Example(Source("built in", number), text=" ".join(pair))
        for number, pair in enumerate(QUESTIONS, 1)
    ]
    return built_in, "built-in questions"


def _tools(chosen: Sequence[Example], task: Task) -> Tools:
    return next(each.tools for each in chosen if str(each.source) == task.source)


def _renders(renderer: Renderer, chat: Chat) -> bool:
    """Whether the template accepts the chat, and writes its tools and calls of them if it has some."""
    try:
        text = renderer.prompt(chat.messages, chat.tools)
    except UnusableError:
        return False
    calls = [call for turn in chat.messages for call in turn.get("tool_calls", ())]
    names = [each["function"]["name"] for each in (*(chat.tools or ()), *calls)]
    return all(text.count(name) >= names.count(name) for name in names)


def _rows(objective: ObjectiveConfig, renderer: Renderer, example: Example) -> list[Row] | None:
    """The example's texts, up to the last loss token; None if the template rejects it."""
    try:
        renderings = objective.render(renderer, example)
    except UnusableError:
        return None
    rows = []
    for ids, loss_mask in renderer.tokenize_many(renderings):
        marks = np.flatnonzero(loss_mask[1:LONGEST]) + 1
        if len(marks):
            rows.append(Row(ids[: marks[-1] + 1], marks))
    return rows
