"""Stock chat templates of well-known models, from the files of the trl package, on a byte tokenizer."""

import re
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_DIRECTORY = Path(str(find_spec("trl").origin)).parent / "chat_templates"

VISION = ("idefics3", "llava_next", "smolvlm")
"""Templates that only accept content as a list of parts."""

STOCK = sorted(
    file.stem
    for file in _DIRECTORY.glob("*.jinja")
    if "_training" not in file.stem and not file.stem.startswith(VISION)
)
TWINS = [name for name in STOCK if (_DIRECTORY / f"{name}_training.jinja").exists()]
"""Templates of which trl has a handwritten version with `{% generation %}` marks."""

_BOS = {
    "gemma": "<bos>",
    "llama3": "<|begin_of_text|>",
    "deepseek": "<｜begin▁of▁sentence｜>",
    "phi3": "<s>",
    "cohere": "<BOS_TOKEN>",
    "lfm2": "<|startoftext|>",
}
_EOS = {
    "gemma": "<eos>",
    "llama3": "<|eot_id|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "phi3": "<|endoftext|>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "gptoss": "<|return|>",
    "glm4": "<|endoftext|>",
}
_CONTROL = re.compile(r"<\|[A-Za-z_]+\|>|<｜[^｜<>]+｜>|<(?:start|end)_of_turn>|<turn\|>|<\|turn>")


def tokenizer_with(template: str, family: str = "") -> PreTrainedTokenizerFast:
    """One token per byte, and the template's special tokens; BOS and EOS are the family's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bos = next((token for name, token in _BOS.items() if family.startswith(name)), None)
    eos = next((token for name, token in _EOS.items() if family.startswith(name)), "<|im_end|>")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token="<pad>",
        additional_special_tokens=sorted(set(_CONTROL.findall(template)) - {bos, eos}),
    )
    fast.chat_template = template
    return fast


def stock(name: str) -> PreTrainedTokenizerFast:
    """The byte tokenizer with a template of trl."""
    return tokenizer_with((_DIRECTORY / f"{name}.jinja").read_text(encoding="utf-8"), name)
