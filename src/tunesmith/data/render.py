from dataclasses import dataclass
import numpy as np
from transformers.utils.chat_template_utils import render_jinja_template


@dataclass(frozen=True, slots=True)
class Rendering:
    text: str
    learnt: tuple


class Renderer:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def render(self, example, learn="assistant"):
        if example.text is not None:
            t = example.text + "<|endoftext|>"
            return [Rendering(t, ((0, len(t)),))]
        texts, spans = render_jinja_template(
            [list(example.messages)], chat_template=self.tokenizer.chat_template, return_assistant_tokens_mask=True
        )
        return [Rendering(texts[0], tuple(spans[0]))]

    def prompt(self, messages, tools=None):
        return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)

    def tokenise_many(self, rs):
        if not rs:
            return []
        enc = self.tokenizer([r.text for r in rs], add_special_tokens=False, return_offsets_mapping=True)
        out = []
        for r, ids, off in zip(rs, enc["input_ids"], enc["offset_mapping"]):
            off = np.array(off)
            m = np.zeros(len(ids), bool)
            for a, b in r.learnt:
                m |= (off[:, 0] >= a) & (off[:, 0] < b)
            out.append((np.array(ids, np.int32), m))
        return out
