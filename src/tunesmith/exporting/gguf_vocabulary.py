"""The tokens that a GGUF file lists."""

import json
from dataclasses import dataclass
from typing import Any

from gguf import TokenType
from transformers import PreTrainedTokenizerFast

from tunesmith.errors import UserError


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a GGUF file lists.

    Attributes:
        stored: the content of tokenizer.json.
        tokens: one for each row of the embeddings.
        types: of each token.
    """

    stored: dict[str, Any]
    tokens: list[str]
    types: list[TokenType]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, size: int) -> "Vocabulary":
        """The tokenizer's tokens, filled up to `size`, the number of embeddings.

        Raises:
            UserError: it has more tokens than that.
        """
        stored = json.loads(tokenizer.backend_tokenizer.to_str())
        names = {id: token for token, id in tokenizer.get_vocab().items()}
        if max(names) >= size:
            raise UserError(
                f"The tokenizer has the token {max(names)}, but the model has {size} embeddings. Resize the "
                "embeddings of the base first."
            )
        tokens = [names.get(id, f"[PAD{id}]") for id in range(size)]
        types = [TokenType.NORMAL if id in names else TokenType.UNUSED for id in range(size)]
        for token in stored["added_tokens"]:
            types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        return cls(stored, tokens, types)

    @property
    def added(self) -> set[int]:
        return {token["id"] for token in self.stored["added_tokens"]}
