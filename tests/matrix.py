"""Every method at every precision on three kinds of base: each combination is either shown to work or refused.

The rows come from the registries: Tunesmith's methods, and all methods that PEFT registers. `make matrix` runs every
cell and writes docs/matrix.md; the test suite runs a covering selection.
"""

import json
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from bytewise import byte_tokenizer
from families import DECODERS, ENCODER_DECODERS, ENCODERS, PADDED, config_of, kind_of
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from textbook import textbook_loss
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast
from writing import answers

from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import METHODS, OBJECTIVES
from tunesmith.data.prepare import resolve
from tunesmith.errors import UserError
from tunesmith.exporting.export import export
from tunesmith.inference.generate import Generator
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.sampling import Sampling
from tunesmith.methods.peft import OWN
from tunesmith.training.stages import resume, train

RECORD = Path(__file__).parents[1] / "benchmarks" / "results" / "matrix.json"
FAMILIES = ("llama", "gpt2", "bert")
WEIGHTS = ("fp32", "bf16", "int8", "nf4", "fp4")
SORTS = ("fp32", "bf16", "nf4")
EVERY_FAMILY = (*DECODERS, *ENCODERS, *ENCODER_DECODERS)
STEPS = 8
CPU = torch.device("cpu")

OPTIONS: dict[str, dict[str, Any]] = {
    "layers": {"last": 1},
    "full": {},
    "OFT": {"oft_block_size": 8},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "HRA": {"r": 4},
    "FOURIERFT": {"n_frequency": 100},
    "WAVEFT": {"n_frequency": 100},
    "CARTRIDGE": {"num_virtual_tokens": 8},
    "MISS": {"r": 8},
    "PSOFT": {"r": 8},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": list(range(5, 64))},
    "VBLORA": {"num_vectors": 16, "vector_length": 16, "topk": 2},
    "RANDLORA": {"r": 4},
}
"""Options that a method needs on models as small as these."""

ALSO: dict[str, list[dict[str, Any]]] = {
    "layers": [{"kind": "layers", "norms_and_biases": True}, {"kind": "layers", "head": True}],
    "lora": [
        {"kind": "lora", "dora": True},
        {"kind": "lora", "initialization": "pissa"},
        {"kind": "lora", "initialization": "loftq"},
        {"kind": "lora", "rank_stabilized": True, "dropout": 0.1, "b_learning_rate_ratio": 4.0},
    ],
    "adapter": [{"kind": "adapter", "placement": "houlsby"}, {"kind": "adapter", "placement": "parallel"}],
    "prefix": [{"kind": "prefix", "projection": True}],
}
"""Variants of a method that train different parameters."""


LIKE = {
    "listwise": "dpo", "kto": "dpo", "graded_reward": "reward", "process_reward": "reward", "ppo": "grpo",
    "online_dpo": "grpo", "best_of_n": "grpo",
}  # fmt: skip
"""Objectives that run through the same code as another one; each has tests of its own. `make test-all` runs all."""

ROLLOUTS: dict[str, dict[str, Any]] = {
    "grpo": {"group_size": 4},
    "ppo": {"group_size": 2, "passes": 2},
    "online_dpo": {"group_size": 4},
    "best_of_n": {"group_size": 4},
}
"""Objectives whose loss is that of their own samples, with sizes for small models."""

RATES = {"prefix": 0.02, "prompt": 0.005, "ptuning": 0.001}
"""Learning rates of the methods whose defaults suit trained embeddings and are too large for random ones."""

REASONS = (
    "moves the base's own matrices",
    "cannot be trained here:",
    "corrects quantization error",
    "is not supported",
    "does not support this layer type",
    "is not a plain torch.nn.Linear",
    "no bias",
    "cannot be identified",
    "does not support encoder-decoders",
    "needs keys and values in every layer",
    "keys and values of one size",
    "needs a cache of keys and values",
    "own forward pass fails in bfloat16",
    "classification head for",
)
"""Texts of refusals: each is a reason that a user can act on."""


@dataclass(frozen=True)
class Cell:
    """One combination."""

    method: dict[str, Any]
    weights: str
    family: str
    objective_override: str | None = None
    """The objective, if it is not the default of the kind of base."""

    @property
    def name(self) -> str:
        kind = self.method["peft_type"] if self.method["kind"] == "peft" else self.method["kind"]
        options = {k: v for k, v in self.method.items() if k not in ("kind", "peft_type", "config")}
        return kind + "".join(f" {key}: {str(value).lower()}" for key, value in options.items())

    @property
    def objective(self) -> str:
        return self.objective_override or DEFAULTS[kind_of(self.family)]

    @property
    def key(self) -> str:
        return f"{self.name} | {self.weights} | {self.family}" + (
            f" | {self.objective_override}" if self.objective_override else ""
        )

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass
class Outcome:
    """The result of a cell.

    Attributes:
        refused: the one-line refusal; None if it works.
        failed: the unexpected error; None if there was none.
        before, after: held-out loss, nats.
        merged: whether it merges.
        unmerged: why it does not merge; None if it does.
        trained: trainable parameters.
        seconds: that the trial took.
        shown: the stages that passed.
    """

    refused: str | None = None
    failed: str | None = None
    before: float = 0.0
    after: float = 0.0
    merged: bool = False
    unmerged: str | None = None
    trained: int = 0
    seconds: float = 0.0
    shown: list[str] = field(default_factory=list)


def methods() -> Iterator[dict[str, Any]]:
    """Every method of the registry, its variants, and every method that PEFT registers."""
    for kind in METHODS:
        if kind != "peft":
            yield {"kind": kind, **OPTIONS.get(kind, {})}
            yield from ALSO.get(kind, [])
    own = {*OWN, "BOTTLENECK"}
    for peft_type in sorted(each.value for each in PEFT_TYPE_TO_CONFIG_MAPPING if each.value not in own):
        config = OPTIONS.get(peft_type)
        yield {"kind": "peft", "peft_type": peft_type, **({"config": config} if config else {})}


def own_methods() -> list[dict[str, Any]]:
    return [{"kind": kind, **OPTIONS.get(kind, {})} for kind in METHODS if kind != "peft"]


def cells() -> list[Cell]:
    return [Cell(method, weights, family) for method in methods() for weights in WEIGHTS for family in FAMILIES]


def family_cells() -> list[Cell]:
    """Every family with each of our own methods, at each precision of SORTS."""
    return [Cell(method, weights, family) for family in EVERY_FAMILY for method in own_methods() for weights in SORTS]


def objectives_for(family: str) -> list[str]:
    """The objectives that the family's kind of base supports, except its default."""
    kind = kind_of(family)
    return [
        name
        for name in OBJECTIVES
        if kind in OBJECTIVES.load(name).bases and name != DEFAULTS[kind] and name not in ROLLOUTS
    ]


def objective_cells() -> list[Cell]:
    """Every objective with each of our own methods at each precision of SORTS, on a family of each kind; and, but for
    those that learn from their own samples, on every family with LoRA."""
    every = [
        Cell(method, weights, family, objective)
        for family in ("llama", "bert", "t5")
        for objective in [*objectives_for(family), *(ROLLOUTS if family == "llama" else ())]
        for method in own_methods()
        for weights in SORTS
    ]
    lora = {"kind": "lora"}
    with_lora = [Cell(lora, "fp32", family, name) for family in EVERY_FAMILY for name in objectives_for(family)]
    return list(dict.fromkeys([*every, *with_lora]))


def covering_objectives() -> list[Cell]:
    """Every objective with each of our own methods, cycling through kinds of base and precisions."""
    chosen: list[Cell] = []
    families = {"decoder": ("llama", "gpt2", "qwen3", "gemma3_text"), "encoder": ("bert", "roberta", "modernbert")}
    for index, objective in enumerate(name for name in OBJECTIVES if name not in ("instruction", "seq2seq")):
        for turn, method in enumerate(own_methods()):
            kinds = [kind for kind in families if kind in OBJECTIVES.load(objective).bases]
            kind = kinds[(index + turn) % len(kinds)]
            family = families[kind][turn % len(families[kind])]
            named = None if objective == DEFAULTS[kind] else objective
            chosen.append(Cell(method, SORTS[(index + turn) % len(SORTS)], family, named))
    return chosen


def expert_cells() -> list[Cell]:
    """LoRA on experts, for every family that has experts."""
    families = [family for family, settings in DECODERS.items() if any("expert" in name for name in settings)]
    return [Cell({"kind": "lora", "experts": True}, SORTS[n % len(SORTS)], family) for n, family in enumerate(families)]


def covering_families() -> list[Cell]:
    """Every family once, with LoRA, cycling through the precisions; `covering` has the other methods."""
    with_lora = [Cell({"kind": "lora"}, SORTS[index % len(SORTS)], family) for index, family in enumerate(EVERY_FAMILY)]
    return [*with_lora, *expert_cells()]


def covering() -> list[Cell]:
    """Every method once, every precision with every family, and our own methods with every family."""
    chosen: list[Cell] = []
    for index, method in enumerate(methods()):
        own = method["kind"] != "peft"
        for turn, family in enumerate(FAMILIES):
            if own or turn == index % len(FAMILIES):
                chosen.append(Cell(method, WEIGHTS[(index + turn) % len(WEIGHTS)], family))
    return chosen


@cache
def outcomes_recorded() -> dict[str, Any]:
    """Outcomes of the whole matrix by the cells' keys, as `make matrix` last found them."""
    return dict(json.loads(RECORD.read_text(encoding="utf-8")))


def recorded(cell: Cell) -> dict[str, Any]:
    """The cell's outcome, or the one of a like cell of the matrix, as far as there is one."""
    like = (cell.key, f"{cell.name} | {cell.weights} | {cell.family}", f"{cell.name} | {cell.weights} | llama")
    return next((outcomes_recorded()[key] for key in like if key in outcomes_recorded()), {})


def values_of(cell: Cell) -> set[str]:
    """The cell's value of each choice; `make test` runs every value at least once, in cells that are not refused."""
    if recorded(cell).get("refused"):
        return {"refused"}
    layout = "padded" if cell.family in PADDED else "packed"
    return {
        f"method {cell.method['kind']}",
        f"objective {LIKE.get(cell.objective, cell.objective)}",
        f"weights {cell.weights}",
        f"{kind_of(cell.family)} {layout}",
    }


def fewest(chosen: Sequence[Cell]) -> list[Cell]:
    """A small selection of cells that covers all values: greedily the cell with the most new values, and of several
    the one that took the shortest time."""
    missing = {value for cell in chosen for value in values_of(cell)}
    selection = []
    while missing:
        best = max(chosen, key=lambda cell: (len(values_of(cell) & missing), -recorded(cell).get("seconds", 0.0)))
        missing -= values_of(best)
        selection.append(best)
    return selection


def make_bases(directory: Path, families: Iterable[str] = FAMILIES) -> None:
    """A tiny model of each family with random weights and a tokenizer, in `directory`."""
    for family in families:
        torch.manual_seed(0)
        kind, make_tokenizer = KINDS[kind_of(family)]
        tokenizer = make_tokenizer()
        special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        if kind_of(family) == "encoder-decoder":
            special["decoder_start_token_id"] = tokenizer.pad_token_id
        if "sliding_window" in DECODERS.get(family, {}):
            special["sliding_window"] = 32  # wider than a prompt, narrower than the rows
        config = config_of(family, len(tokenizer), **special)
        if kind_of(family) == "encoder":
            config.initializer_range = 0.2
        kind.from_config(config).save_pretrained(directory / family)
        tokenizer.save_pretrained(directory / family)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, and BERT's special tokens."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *(f"w{n}" for n in range(120)),
        *"good bad film it is".split(),
    ]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, and the end-of-sequence token of T5 and BART."""
    words = ["<pad>", "<unk>", "</s>", *(f"w{n}" for n in range(120)), *"What is It ? .".split()]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


KINDS: dict[str, tuple[Any, Callable[[], PreTrainedTokenizerFast]]] = {
    "decoder": (AutoModelForCausalLM, byte_tokenizer),
    "encoder": (AutoModelForMaskedLM, word_tokenizer),
    "encoder-decoder": (AutoModelForSeq2SeqLM, pair_tokenizer),
}
"""Model class and tokenizer of each kind of base."""

DEFAULTS = {"decoder": "instruction", "encoder": "classification", "encoder-decoder": "seq2seq"}
"""Default objective of each kind of base."""

ROWS = {
    "classification": "texts",
    "few_shot": "texts",
    "multi_label": "labels",
    "regression": "scores",
    "token_classification": "words",
    "embedding": "pairs",
    "reward": "preferences",
    "dpo": "preferences",
    "listwise": "rankings",
    "kto": "ratings",
    "process_reward": "steps",
    "graded_reward": "grades",
}
"""Rows of each objective; chats for the others."""


def write_data(directory: Path) -> None:
    """A few rows of each format."""
    chats = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(12)]
    formats: dict[str, list[dict[str, Any]]] = {name: [] for name in ("texts", "labels", "scores", "words", "pairs")}
    for n in range(24):
        words = [("bad", "good")[n % 2]] * (n % 3 + 1) + ["film", f"w{n % 7}"]
        text = " ".join(words)
        formats["texts"].append({"text": text, "label": ("no", "yes")[n % 2]})
        formats["labels"].append({"text": text, "labels": [("no", "yes")[n % 2], *(["long"] if n % 3 else [])]})
        formats["scores"].append({"text": text, "score": 20.0 + 10 * (n % 2)})
        tags = ["B-SAID" if word in ("bad", "good") else "O" for word in words]
        formats["words"].append({"tokens": words, "tags": tags})
        formats["pairs"].append({"anchor": text, "positive": f"it is {('bad', 'good')[n % 2]} w{n % 7}"})
    answers = [f"It is {n}." for n in range(12)]
    formats["preferences"] = [
        {"prompt": chat["question"], "chosen": chat["answer"], "rejected": "I do not know"} for chat in chats
    ]
    formats["rankings"] = [
        {"prompt": chat["question"], "completions": [chat["answer"], answers[n - 1], "No"]}
        for n, chat in enumerate(chats)
    ]
    formats["ratings"] = [
        {"prompt": chat["question"], "completion": chat["answer"] if n % 2 else "No", "label": bool(n % 2)}
        for n, chat in enumerate(chats)
    ]
    formats["steps"] = [
        {"prompt": chat["question"], "completions": ["Think.", chat["answer"]], "labels": [True, bool(n % 2)]}
        for n, chat in enumerate(chats)
    ]
    formats["grades"] = [
        {"prompt": chat["question"], "response": chat["answer"], "helpfulness": n % 3, "brevity": 2 - n % 2}
        for n, chat in enumerate(chats)
    ]
    for name, rows in {"chats": chats, **formats}.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        for side in ("train", "held_out"):
            (directory / f"{name}_{side}.jsonl").write_text(text, encoding="utf-8")


def recipe_of(cell: Cell, directory: Path) -> dict[str, Any]:
    train_file, held_out_file = (
        str(directory / f"{ROWS.get(cell.objective, 'chats')}_{side}.jsonl") for side in ("train", "held_out")
    )
    objective: dict[str, Any] = {"kind": cell.objective}
    if cell.objective == "distillation":  # its own teacher, so that the other half of the loss is the one that falls
        objective |= {"teacher": str(directory / cell.family), "label_weight": 0.5}
    if cell.objective in ROLLOUTS:
        rewards = [{"function": "length", "options": {"maximum": 8, "margin": 8, "unit": "characters"}}]
        objective |= {"rewards": rewards, "prompts": 4, "max_new_tokens": 8, **ROLLOUTS[cell.objective]}
    return {
        "base": {"path": str(directory / cell.family), "weights": cell.weights},
        "data": {"train": train_file, "held_out": [held_out_file], "max_length": 128, "cache": False},
        "method": cell.method,
        "objective": objective,
        "train": {
            "steps": 2 * STEPS if cell.objective in ROWS and cell.method["kind"] in ("prompt", "ptuning") else STEPS,
            "tokens_per_step": 4096,
            "precision": "auto" if cell.weights in ("fp32", "bf16") else "fp32",
            "checkpoint_every": 4,
            "evaluate_every": 2 * STEPS,
            "warmup_ratio": 0.0,
            "schedule": "constant",
            "learning_rate": RATES.get(cell.method["kind"]),
        },
    }


def attempt(cell: Cell, bases: Path) -> Outcome:
    """Train, save, kill and resume, reload, generate and merge, unless the cell is refused."""
    started = time.perf_counter()
    directory = Path(tempfile.mkdtemp(prefix="matrix-"))
    outcome = Outcome()
    try:
        _attempt(cell, bases, directory, outcome)
    except UserError as error:
        outcome.refused = " ".join(str(error).removeprefix("recipe: ").split())
    except Exception as error:  # a cell's failure is recorded and does not end the matrix
        frame = traceback.extract_tb(error.__traceback__)[-1]
        outcome.failed = f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"[:400]
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    outcome.seconds = time.perf_counter() - started
    return outcome


def _attempt(cell: Cell, bases: Path, directory: Path, outcome: Outcome) -> None:
    values = recipe_of(cell, bases)
    run = train(values, directory / "run")
    events = list(run.events())
    evaluations = [event["loss"] for event in events if event["event"] == "evaluation"]
    outcome.before, outcome.after = evaluations[0], evaluations[-1]
    outcome.trained = next(event["trained_parameters"] for event in events if event["event"] == "start")
    if cell.objective not in ROLLOUTS:  # theirs is the reward of answers, which a random base does not learn so soon
        assert outcome.after < outcome.before, f"the loss does not fall: {outcome.before:.4f} → {outcome.after:.4f}"
        outcome.shown.append("learns")
    _killed_and_resumed(values, directory, run.directory, cell.family)
    outcome.shown.append("resumes")
    recipe = resolve(Recipe.load(run.directory / "recipe.yaml"))
    reference = ModelReference.find(str(run.directory))
    dtype = torch.bfloat16 if cell.weights == "bf16" else torch.float32
    model = reference.model(dtype, CPU)
    if cell.objective not in ROLLOUTS:
        loss = textbook_loss(model, recipe)
        tolerance = 0.03 if cell.weights == "bf16" else 1e-3
        close = tolerance * max(1.0, outcome.after)
        assert abs(loss - outcome.after) < close, f"reloaded {loss}, trained {outcome.after}"
        outcome.shown.append("reloads")
    if recipe.objective.head.generates_text:
        _generates(model, reference)
        outcome.shown.append("generates")
    if reference.adapter is not None:
        try:
            merged = export(run.directory, directory / "merged", "hf", precision="fp32").path
        except UserError as error:
            outcome.unmerged = " ".join(str(error).split(": ", 1)[-1].split())
            return
        if cell.objective in ROLLOUTS:
            outcome.merged = True
            return
        merged_loss = textbook_loss(ModelReference.find(str(merged)).model(torch.float32, CPU), recipe)
        gap = {"fp32": 0.002, "bf16": 0.05}.get(cell.weights, 0.25)
        difference = abs(merged_loss - outcome.after)
        assert difference < gap * max(1.0, outcome.after), f"merged {merged_loss}, trained {outcome.after}"
        outcome.merged = True
        outcome.shown.append("merges")


def _killed_and_resumed(values: dict[str, Any], directory: Path, uninterrupted: Path, family: str) -> None:
    """The same run, with activation checkpointing, killed after its first checkpoint and resumed: the same weights.

    Without activation checkpointing where the family does not support it (its error says so), and for
    encoder–decoders: there every block of the decoder reads the encoder's output, and gradients are summed in another
    order.
    """

    class KilledError(Exception):
        pass

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint" and event["step"] == 4:
            raise KilledError

    again = {**values, "train": {**values["train"], "gradient_checkpointing": family not in ENCODER_DECODERS}}
    try:
        try:
            train(again, directory / "killed", subscribers=[kill])
        except UserError as refused:
            if "gradient_checkpointing" not in str(refused):
                raise
            again["train"]["gradient_checkpointing"] = False
            train(again, directory / "killed", subscribers=[kill])
    except KilledError:
        resume(directory / "killed")
    else:
        raise AssertionError("the run should have been killed")
    for file in sorted(uninterrupted.glob("*/*.safetensors")):
        twin = directory / "killed" / file.parent.name / file.name
        if file.parent.name in ("adapter", "model"):
            assert twin.read_bytes() == file.read_bytes(), f"{file.name} differs after a kill"


@torch.no_grad()
def _generates(model: Any, reference: ModelReference) -> None:
    """Greedy generation picks, at every step, the most likely token of the model's own forward pass."""
    tokenizer = reference.tokenizer()
    ids = tokenizer("What is 3?", return_tensors="pt")["input_ids"]
    if model.config.is_encoder_decoder:
        _decoder_generates(model, tokenizer, ids)
        return
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )[:, -4:]  # fmt: skip
    for step in range(4):
        prefix = torch.cat([ids, out[:, :step]], 1)
        logits = model(input_ids=prefix, attention_mask=torch.ones_like(prefix)).logits[0, -1].float()
        chosen = logits[out[0, step]]
        assert logits.max() - chosen < 0.05, "generation does not follow the model's own forward pass"
    generator = Generator.of(reference, model.dtype, CPU, loaded=model, tokenizer=tokenizer)
    assert generator.answers([({"role": "user", "content": "What is 3?"},)], Sampling(max_new_tokens=4))


def _decoder_generates(model: Any, tokenizer: Any, ids: torch.Tensor) -> None:
    model.generation_config.forced_eos_token_id = None
    out = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    for step in range(1, 5):
        logits = model(input_ids=ids, decoder_input_ids=out[:, :step]).logits[0, -1].float()
        assert logits.max() - logits[out[0, step]] < 0.05, "generation does not follow the model's own forward pass"
    chats = [({"role": "user", "content": "What is 3?"},)]
    assert len(answers(model, tokenizer, chats, Sampling(max_new_tokens=4))) == 1


def try_all(chosen: list[Cell], bases: Path, workers: int) -> dict[Cell, Outcome]:
    outcomes: dict[int, Outcome] = {}
    with ProcessPoolExecutor(workers, initializer=_one_thread) as pool:
        waiting = {pool.submit(attempt, cell, bases): index for index, cell in enumerate(chosen)}
        for done, future in enumerate(as_completed(waiting), 1):
            index = waiting[future]
            outcomes[index] = outcome = future.result()
            cell = chosen[index]
            state = outcome.failed or outcome.refused or ", ".join(outcome.shown)
            print(f"{done}/{len(chosen)} {cell.key}: {state}", flush=True)
    return {cell: outcomes[index] for index, cell in enumerate(chosen)}  # type: ignore[misc]


def _one_thread() -> None:
    import warnings

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
