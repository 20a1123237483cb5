"""Runs that learn from what they sample, in memory: a small model, prompts of bytes, and a reward of its answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bytewise import byte_tokenizer
from numpy.typing import NDArray
from small_models import method_of, objective_of
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.config.train import Train
from tunesmith.data.example import Example, Source
from tunesmith.data.pack import Batches
from tunesmith.data.render import Renderer
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.checkpoint import latest_checkpoint, load_checkpoint
from tunesmith.engine.loop import Loop
from tunesmith.engine.phases import InitialWeights, Phases
from tunesmith.engine.trainable import master_weights
from tunesmith.inference.sampler import Sampler
from tunesmith.inference.server_sampler import ServerSampler
from tunesmith.models.attention import use_document_attention
from tunesmith.objectives.rollouts import Completion, Prompt
from tunesmith.run import Event, Events

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Values:
    """Rewards of one function (completions,)."""

    total: NDArray[np.float64]
    names: tuple[str, ...] = ("reward",)
    noted_metrics: dict[str, float] = field(default_factory=dict)

    @property
    def values(self) -> NDArray[np.float64]:
        return self.total[:, None]


def odd(text: str) -> float:
    """Characters of an answer with an odd code, each an eighth."""
    return sum(ord(letter) % 2 for letter in text) / 8


def tiny_llama(dtype: torch.dtype = torch.float32, spread: float = 0.3) -> Any:
    """A Llama of two layers, whose probabilities are far from uniform, with document attention."""
    model = plain_llama(dtype, spread)
    use_document_attention(model)
    return model


def plain_llama(dtype: torch.dtype, spread: float) -> Any:
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=len(tokenizer),
            max_position_embeddings=128,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=spread,
        )
    ).to(dtype)
    return model


def pretrained_llama(answers: Sequence[str], prompts: Sequence[str], steps: int = 150) -> Any:
    """A Llama of two layers that has learned to answer each prompt with one of the answers, equally often."""
    tokenizer = byte_tokenizer()
    renderer = Renderer(tokenizer)
    model = plain_llama(torch.float32, 0.1)
    texts = [
        (len(asked), torch.tensor([*asked, *tokenizer(answer)["input_ids"], tokenizer.eos_token_id]))
        for prompt in prompts
        for asked in [tokenizer(renderer.prompt([{"role": "user", "content": prompt}]))["input_ids"]]
        for answer in answers
    ]
    longest = max(len(ids) for _, ids in texts)
    ids = torch.full((len(texts), longest), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for row, (start, own) in enumerate(texts):
        ids[row, : len(own)] = own
        labels[row, start : len(own)] = own[start:]
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    use_document_attention(model)
    return model.eval()


def rollouts_over(
    directory: Path,
    model: Any = None,
    reward: Callable[[str], float] = odd,
    kind: str = "grpo",
    method: str = "full",
    rows: Sequence[str] = ("one", "two", "three", "four"),
    rate: float = 5e-3,
    steps: int = 2,
    tokens_per_batch: int = 4096,
    settings: dict[str, Any] | None = None,
    **objective: Any,
) -> tuple[Loop, list[Event]]:
    """A loop that samples and learns, and the list that collects its events.

    Args:
        directory: for its checkpoints.
        model: the base; default: `tiny_llama()`.
        reward: of an answer's text.
        kind: of the objective.
        method: which weights are trained.
        rows: the prompts.
        rate: the learning rate.
        steps: optimizer steps.
        tokens_per_batch: the most tokens in a batch.
        settings: fields of `train`.
        objective: its fields.
    """
    sizes = {"prompts": 2, "max_new_tokens": 6, **({} if kind == "ppo" else {"group_size": 4})}
    config = objective_of(kind, **{"rewards": ["exact"], **sizes, **objective})
    tokenizer = byte_tokenizer()
    renderer = Renderer(tokenizer)
    examples = [
        Example(Source("prompts", number), messages=({"role": "user", "content": prompt},), columns={"prompt": prompt})
        for number, prompt in enumerate(rows, 1)
    ]
    renderings = renderer.tokenize_many([config.render(renderer, example)[0] for example in examples])
    table = TokenTable.build((*each, example.source) for each, example in zip(renderings, examples, strict=True))
    trained = method_of(method).apply(model if model is not None else tiny_llama(), 0)
    losses = config.build()
    losses.add_layers(trained)
    plan = config.rollouts
    train = Train(steps=steps, schedule="constant", warmup_ratio=0.0, checkpoint_every=1, **(settings or {}))
    batches = Batches(
        table,
        tokens_per_step=0,
        tokens_per_batch=tokens_per_batch,
        pack=True,
        shuffle=True,
        seed=0,
        rows_per_step=plan.prompts,
    )
    events: list[Event] = []
    emitter = Events(events.append)

    def rewards(_: Sequence[Prompt], completions: Sequence[Completion], __: int) -> Values:
        return Values(np.array([reward(completion.text) for completion in completions]))

    phases = Phases(
        trained, losses, plan, batches, {example.source: example for example in examples},
        Sampler(trained, tokenizer, pages=64)
        if plan.server is None
        else ServerSampler(trained, tokenizer, plan.server, directory),
        rewards,
        InitialWeights(trained) if plan.keeps_initial_weights else None, 0, emitter,
    )  # fmt: skip
    loop = Loop(
        model=trained,
        objective=losses,
        batches=batches,
        held_out=partial(phases.evaluate, table, range(len(table))),
        evaluate_every=steps,
        masters=master_weights(trained, train, lambda _: 1.0, losses.layers),
        train=train,
        total_steps=steps,
        peak_learning_rate=rate,
        tokens_per_batch=tokens_per_batch,
        directory=directory,
        events=emitter,
        device=CPU,
        phases=phases,
    )
    trained.train()
    return loop, events


def shift_log_probs(loop: Loop) -> None:
    """Have the sampler report half and twice the probability of each other token."""
    assert loop.phases is not None
    sample = loop.phases.sampler.sample

    def shifted(*arguments: Any) -> Any:
        return [
            replace(each, log_probs=[log + (-1) ** t * np.log(2) for t, log in enumerate(each.log_probs)])
            for each in sample(*arguments)
        ]

    loop.phases.sampler.sample = shifted  # type: ignore[method-assign]


def weights_of(loop: Loop) -> torch.Tensor:
    """The trained weights (weights,)."""
    return loop.masters.flat.clone()


def resumed(directory: Path, **same: Any) -> tuple[Loop, list[Event]]:
    """A new loop, as `rollouts_over` makes it, that continues from the last checkpoint in the directory."""
    loop, events = rollouts_over(directory, **same)
    checkpoint = latest_checkpoint(directory / "checkpoints")
    if checkpoint is not None:
        loop.restore(*load_checkpoint(checkpoint))
    return loop, events
