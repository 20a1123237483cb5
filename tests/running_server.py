"""A server in this process, on a free port of this machine."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import torch
from peft import LoraConfig, get_peft_model
from small_models import randomize
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from tunesmith.serving.load import load_service
from tunesmith.serving.server import Server, listen
from tunesmith.serving.service import Service


@contextmanager
def served(model: str | Path, concurrent: int = 8, adapters: Any = None, **settings: Any) -> Iterator["Served"]:
    """Serve a model in fp32 as `tiny`.

    Args:
        model: to serve.
        concurrent: the most answers at the same time.
        adapters: by name, or the directory of them.
        settings: other options of the service.
    """
    given = {"adapter_directory": adapters} if isinstance(adapters, Path) else {"adapters": adapters}
    service = load_service(str(model), name="tiny", precision="fp32", concurrent=concurrent, **given, **settings)
    with listen("127.0.0.1", 0) as listener:
        server = Server(service, listener)
        ready = threading.Event()
        thread = threading.Thread(target=server.run, args=(lambda address: ready.set(),))
        thread.start()
        try:
            assert ready.wait(60)
            yield Served(service, server)
        finally:
            server.stop()
            thread.join(60)
            assert not thread.is_alive()


class Served:
    """A running server, and OpenAI's clients of it."""

    def __init__(self, service: Service, server: Server) -> None:
        self.service, self.server, self.address = service, server, server.address

    def client(self, key: str = "none") -> openai.OpenAI:
        """OpenAI's own client."""
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=60)


def save_adapter(base: Path, directory: Path, target: str = "q_proj", spread: float = 0.3) -> Path:
    """A LoRA of the base with random weights on the layers of that name, in PEFT's files."""
    config = LoraConfig(r=4, target_modules=[target], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    randomize(model, spread)
    model.save_pretrained(directory)
    return directory


def tiny_llama(directory: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """The directory of a one-layer Llama with random weights and that tokenizer."""
    LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=len(tokenizer),
            max_position_embeddings=2048,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
