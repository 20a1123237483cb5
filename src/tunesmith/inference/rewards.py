"""What a reward model says of answers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tunesmith.config.head import Head
from tunesmith.data.example import Completion, Example, Message, Source
from tunesmith.data.preferences import STEP_END
from tunesmith.data.render import Renderer, joined
from tunesmith.data.tokens import TokenTable
from tunesmith.inference.held_out import row_outputs

Chat = str | Sequence[Message]
"""A question, or the turns of a chat."""

TOKENS = 4096
"""In a batch."""

SOURCE = Source("chats", 1)


def ends_of(
    model: PreTrainedModel, renderer: Renderer, head: Head, pairs: Sequence[tuple[Chat, Chat]]
) -> list[NDArray[np.float32]]:
    """The head's outputs (1, outputs) at the last token of each completion, packed as in training.

    Args:
        model: in evaluation mode; it gets document attention.
        renderer: of the model's tokenizer.
        head: what the model ends in.
        pairs: a question or the turns of a chat, and an answer or its turns, each.

    Raises:
        UnusableError: the chat template cannot render one.
    """
    rows = []
    for number, (prompt, completion) in enumerate(pairs, 1):
        answer = Completion(turns_of(completion, "assistant"), 0.0)
        rendering = renderer.completions(
            Example(Source("chats", number), messages=turns_of(prompt, "user"), completions=(answer,)),
            with_targets=True,
        )
        ids, mask, lengths = joined(renderer.tokenize_many(rendering.completions), on_last_token=True)
        rows.append((ids, mask, Source("chats", number), (0.0,), (tuple(lengths), (0.0,))))
    return row_outputs(head, model, TokenTable.build(rows), TOKENS)


def step_rewards_of(
    model: PreTrainedModel, renderer: Renderer, head: Head, prompt: Chat, steps: Sequence[str]
) -> list[float]:
    """The probability that each step of an answer is right.

    Args:
        model: in evaluation mode; it gets document attention.
        renderer: of the model's tokenizer.
        head: of a process reward model.
        prompt: a question, or the turns of a chat.
        steps: of the answer; a blank line is put between them.

    Raises:
        UnusableError: the chat template cannot render the chat.
    """
    texts = (*(f"{step}{STEP_END}" for step in steps[:-1]), steps[-1])
    answer: Message = {"role": "assistant", "content": "".join(texts)}
    example = Example(SOURCE, messages=(*turns_of(prompt, "user"), answer), others=texts)
    targets = (0.0,) * len(texts)
    ((ids, mask),) = renderer.tokenize_many([renderer.steps(example, targets)])
    (output,) = row_outputs(head, model, TokenTable.build([(ids, mask, SOURCE, targets)]), TOKENS)
    return [float(value) for value in output[:, 0]]


def turns_of(chat: Chat, role: str) -> tuple[Message, ...]:
    """The turns of a chat; a text is one turn of that role."""
    return ({"role": role, "content": chat},) if isinstance(chat, str) else tuple(chat)
