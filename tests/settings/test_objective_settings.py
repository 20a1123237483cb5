"""Every setting of every objective does what its documentation says: formulas computed from the model's logits."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bytewise import byte_tokenizer
from settings_coverage import shows
from small_models import ROWS, batch_of, logits_alone, objective_of, small_model, states_alone
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tunesmith.config.base import Base
from tunesmith.config.recipe import Recipe
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example, Source
from tunesmith.data.prepare import prepare
from tunesmith.data.render import Renderer
from tunesmith.engine.trainable import learning_rates
from tunesmith.errors import UserError
from tunesmith.heads.embedding import EmbeddingClassifierHead, EmbeddingHead
from tunesmith.heads.sequence_classification import MultiLabelHead, RegressionHead, SequenceClassificationHead
from tunesmith.inference.model_reference import ModelReference
from tunesmith.models.attention import use_document_attention
from tunesmith.models.load import load_model, load_tokenizer

NAMES = ["calm", "bold", "dry"]
HEADS = ("classification", "multi_label", "regression", "token_classification")


def rendered(objective: Any, **example: Any) -> list[Any]:
    renderings: list[Any] = objective.render(Renderer(byte_tokenizer()), Example(Source("rows", 3), **example))
    return renderings


# Written text


def answers_alone(model: Any) -> tuple[Tensor, Tensor, Batch]:
    """Logits (loss tokens, vocabulary) and target ids (loss tokens,) of all loss positions, and the batch."""
    if model.config.is_encoder_decoder:
        pairs = [(torch.tensor(ids[:2]), torch.tensor(ids[2:])) for ids in ROWS]
        logits = [model(input_ids=source[None], labels=target[None]).logits[0] for source, target in pairs]
        batch = batch_of(loss_mask=[range(2, len(ids)) for ids in ROWS])
        return torch.cat(logits), torch.cat([target for _, target in pairs]), batch
    loss_mask = [[1, 3, 4], [2], [1, 2], [4, 5, 6]]
    logits = [
        row[[index - 1 for index in indices]] for row, indices in zip(logits_alone(model), loss_mask, strict=True)
    ]
    labels = [ids[index] for ids, indices in zip(ROWS, loss_mask, strict=True) for index in indices]
    return torch.cat(logits), torch.tensor(labels), batch_of(loss_mask=loss_mask)


@shows(
    *(
        f"objective.{kind}.{name}"
        for kind in ("instruction", "text", "seq2seq")
        for name in ("label_smoothing", "z_loss")
    )
)
@pytest.mark.parametrize(("smoothing", "z"), [(0.3, 0.0), (0.0, 0.07), (0.2, 0.05), (0.0, 0.0)])
@pytest.mark.parametrize(("kind", "family"), [("instruction", "llama"), ("text", "gpt2"), ("seq2seq", "bart")])
def test_label_smoothing_and_z_loss_are_in_the_training_loss_only(
    kind: str, family: str, smoothing: float, z: float
) -> None:
    model = small_model(family)
    logits, labels, batch = answers_alone(model)
    losses = -torch.log_softmax(logits, -1)
    own = losses.gather(1, labels[:, None])[:, 0]
    expected = (1 - smoothing) * own + smoothing * losses.mean(1) + z * torch.logsumexp(logits, -1) ** 2
    objective = objective_of(kind, label_smoothing=smoothing, z_loss=z)
    torch.testing.assert_close(objective.build().loss(model, batch), expected.sum(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(objective.build().losses(model, batch), own, rtol=1e-6, atol=1e-6)


CHAT = tuple(
    {"role": role, "content": content}
    for role, content in (
        ("user", "What is 2 + 2?"),
        ("assistant", "Four."),
        ("user", "And 3 + 3?"),
        ("assistant", "Six."),
    )
)


@shows("objective.instruction.learn", "objective.distillation.learn")
@pytest.mark.parametrize(
    ("learn", "expected"),
    [
        ({}, ["Four.<|im_end|>", "Six.<|im_end|>"]),
        ({"learn": "assistant"}, ["Four.<|im_end|>", "Six.<|im_end|>"]),
        ({"learn": "last"}, ["Six.<|im_end|>"]),
        (
            {"learn": "all"},
            [
                "<|im_start|>user\nWhat is 2 + 2?<|im_end|><|im_start|>assistant\nFour.<|im_end|>"
                "<|im_start|>user\nAnd 3 + 3?<|im_end|><|im_start|>assistant\nSix.<|im_end|>"
            ],
        ),
    ],
)
@pytest.mark.parametrize("kind", ["instruction", "distillation"])
def test_learn_selects_the_turns_with_loss(kind: str, learn: dict[str, str], expected: list[str]) -> None:
    objective = objective_of(kind, **learn, **({"teacher": "nowhere"} if kind == "distillation" else {}))
    (rendering,) = rendered(objective, messages=CHAT)
    assert [rendering.text[start:end] for start, end in rendering.loss_spans] == expected


@shows("objective.text.concatenate")
def test_concatenate_joins_documents_and_splits_them_at_max_length(tiny_model: Path, tmp_path: Path) -> None:
    texts = ["one two", "three", "a longer text than those", "four"]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    pieces = {}
    for joined in (False, True):
        recipe = Recipe.load(
            {
                "base": str(tiny_model),
                "data": {"train": str(file), "held_out": 0.0, "max_length": 16, "cache": False},
                "objective": {"kind": "text", "concatenate": joined},
            }
        )
        tokenizer = load_tokenizer(recipe.base)
        pieces[joined] = [tokenizer.decode(ids) for ids, _ in prepare(recipe, tokenizer).train]
    end = "<|endoftext|>"
    characters = [character for text in texts for character in [*text, end]]
    assert pieces[True] == ["".join(characters[start : start + 16]) for start in range(0, len(characters) - 1, 15)]
    assert pieces[False] == ["one two" + end, "three" + end, "a longer text th", "han those" + end, "four" + end]


# A head over classes, labels, values or tags


def of_texts(kind: str) -> tuple[Any, Tensor]:
    """A Bert with a head of three outputs (regression: one), and its scores of each row (rows, outputs)."""
    heads = {"multi_label": MultiLabelHead(tuple(NAMES)), "regression": RegressionHead()}
    model = small_model("bert", heads.get(kind, SequenceClassificationHead(tuple(NAMES))))
    return model, torch.stack(logits_alone(model))


@shows("objective.classification.class_weights", "objective.classification.label_smoothing")
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [None, {"bold": 3.0}, {"calm": 0.5, "dry": 2.5}])
def test_class_weights_and_label_smoothing_follow_their_formula(
    weights: dict[str, float] | None, smoothing: float
) -> None:
    model, logits = of_texts("classification")
    objective = objective_of("classification", labels=NAMES, class_weights=weights, label_smoothing=smoothing)
    classes = torch.tensor([1, 2, 0, 1])
    batch = batch_of(targets=[[float(label)] for label in classes])
    losses = -torch.log_softmax(logits, -1)  # (rows, classes)
    weight = torch.tensor([(weights or {}).get(name, 1.0) for name in NAMES], dtype=torch.float64)
    own = losses.gather(1, classes[:, None])[:, 0]
    expected = (1 - smoothing) * weight[classes] * own + smoothing * (weight * losses).mean(1)
    torch.testing.assert_close(objective.build().loss(model, batch).double(), expected.sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(objective.build().losses(model, batch).double(), own, rtol=1e-5, atol=1e-5)


@shows("objective.multi_label.class_weights")
@pytest.mark.parametrize("weights", [None, {"bold": 3.0}, {"calm": 0.5, "dry": 2.5}])
def test_weights_of_positive_labels_follow_their_formula(weights: dict[str, float] | None) -> None:
    model, z = of_texts("multi_label")
    objective = objective_of("multi_label", labels=NAMES, class_weights=weights)
    targets = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]]
    y = torch.tensor(targets, dtype=torch.float64)
    weight = torch.tensor([(weights or {}).get(name, 1.0) for name in NAMES], dtype=torch.float64)
    positive, negative = -torch.log(torch.sigmoid(z)), -torch.log(1 - torch.sigmoid(z))
    batch = batch_of(targets=targets)
    expected = (weight * y * positive + (1 - y) * negative).mean(1).sum()
    torch.testing.assert_close(objective.build().loss(model, batch).double(), expected, rtol=1e-5, atol=1e-5)
    plain = (y * positive + (1 - y) * negative).mean(1)
    torch.testing.assert_close(objective.build().losses(model, batch).double(), plain, rtol=1e-5, atol=1e-5)


def examples_of(labels: list[Any]) -> list[Example]:
    return [Example(Source("rows", index + 1), text="w", label=label) for index, label in enumerate(labels)]


@shows("objective.classification.class_weights", "objective.multi_label.class_weights")
def test_balanced_class_weights_follow_their_formula() -> None:
    rows = examples_of(["b"] * 6 + ["a"] * 3 + ["c"])
    resolved = objective_of("classification", class_weights="balanced").resolve(lambda: rows)
    assert resolved.labels == ["a", "b", "c"]
    assert resolved.class_weights == pytest.approx({"a": 10 / (3 * 3), "b": 10 / (3 * 6), "c": 10 / (3 * 1)})
    named = objective_of("classification", class_weights="balanced", labels=["c", "b", "a", "d"]).resolve(lambda: rows)
    assert named.labels == ["c", "b", "a", "d"]
    assert named.class_weights == pytest.approx({"a": 10 / 9, "b": 10 / 18, "c": 10 / 3})
    many = examples_of([("x", "y")] * 2 + [("x",)] * 5 + [("x", "z")])
    weighed = objective_of("multi_label", class_weights="balanced").resolve(lambda: many)
    assert weighed.labels == ["x", "y", "z"]
    assert weighed.class_weights == pytest.approx({"x": 1 / 8, "y": 6 / 2, "z": 7 / 1})


@shows(
    "objective.classification.labels",
    "objective.multi_label.labels",
    "objective.token_classification.labels",
    "objective.few_shot.labels",
)
@pytest.mark.parametrize("kind", ["classification", "multi_label", "token_classification", "few_shot"])
def test_labels_have_the_given_order_and_are_sorted_by_default(kind: str) -> None:
    def example(name: str) -> dict[str, Any]:
        if kind == "token_classification":
            return {"text": "ab", "spans": ((0, 1, name), (1, 2, "bold"))}
        return {"text": "ab", "label": (name, "bold") if kind == "multi_label" else name}

    rows = [Example(Source("rows", n), **example(name)) for n, name in enumerate(["dry", "calm", "bold"] * 2)]
    from_rows = objective_of(kind).resolve(lambda: rows)
    named = objective_of(kind, labels=NAMES).resolve(lambda: rows)
    assert from_rows.head.labels == ("bold", "calm", "dry")
    assert named.head.labels == ("calm", "bold", "dry")
    targets = [rendered(resolved, **example("calm"))[0].targets for resolved in (from_rows, named)]
    expected: Any = {
        "multi_label": [(1.0, 1.0, 0.0), (1.0, 1.0, 0.0)],
        "token_classification": [(1.0, 0.0), (0.0, 1.0)],
    }
    assert targets == expected.get(kind, [(1,), (0,)])
    with pytest.raises(UserError, match=r"rows row 3: .*'wet' is not in objective.labels \(calm, bold, dry\)\."):
        rendered(named, **example("wet"))


@shows(*(f"objective.{kind}.head_learning_rate" for kind in HEADS))
@pytest.mark.parametrize("kind", HEADS)
def test_a_new_head_has_its_own_learning_rate(kind: str) -> None:
    values: dict[str, Any] = {"std": 2.5, "mean": 3.0} if kind == "regression" else {"labels": NAMES}
    recipe = Recipe.load(
        {
            "data": {"train": "rows.jsonl"},
            "objective": {"kind": kind, "head_learning_rate": 0.007, **values},
            "train": {"learning_rate": 2e-4},
        }
    )
    model = small_model("bert", recipe.objective.head)
    peft_model = recipe.method.apply(model, seed=0)
    peak, factor = learning_rates(recipe, peft_model)
    trained = [name for name, parameter in peft_model.named_parameters() if parameter.requires_grad]
    heads = {name for name in trained if ".classifier." in name}
    assert len(heads) == 2
    for name in heads:
        assert peak * factor(name) == pytest.approx(0.007 * (2.5 if kind == "regression" else 1.0), rel=1e-12)
    own = objective_of(kind)
    assert own.head_learning_rate_at(1000) == 0.008
    assert own.head_learning_rate_at(100) == 0.02


@shows("objective.regression.mean", "objective.regression.std")
def test_a_regression_head_starts_at_the_mean_and_is_scaled_by_the_standard_deviation() -> None:
    model, _ = of_texts("regression")
    before = model.classifier.weight.detach().clone()
    objective = objective_of("regression", mean=-4.5, std=2.5).resolve(list)
    objective.initialize_head(model)
    torch.testing.assert_close(model.classifier.weight.detach(), 2.5 * before)
    assert model.classifier.bias.tolist() == [-4.5]
    targets = [-7.0, -2.5, 1.0, -5.0]
    batch = batch_of(targets=[[target] for target in targets])
    values = torch.stack(logits_alone(model))[:, 0]
    expected = ((values - torch.tensor(targets, dtype=torch.float64)) / 2.5) ** 2
    torch.testing.assert_close(objective.build().losses(model, batch).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(objective.build().loss(model, batch).double(), expected.sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(objective.head.outputs(model, batch)[:, 0].double(), values, rtol=1e-5, atol=1e-5)


@shows("objective.regression.mean", "objective.regression.std")
@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [
        ({}, 4.0, 2.0),
        ({"mean": -1.5}, -1.5, 2.0),
        ({"std": 0.25}, 4.0, 0.25),
        ({"mean": 0.0, "std": 7.0}, 0.0, 7.0),
    ],
)
def test_mean_and_standard_deviation_are_computed_from_the_rows_by_default(
    values: dict[str, float], mean: float, std: float
) -> None:
    resolved = objective_of("regression", **values).resolve(lambda: examples_of([2.0, 2.0, 4.0, 5.0, 7.0]))
    assert (resolved.mean, resolved.std) == pytest.approx((mean, np.std([2, 2, 4, 5, 7]) if std == 2.0 else std))
    assert resolved.output_scale == resolved.std


# Vectors

PARTS = [[[5, 9, 13], [21, 30]], [[7, 8, 33], [11, 40, 12, 6]], [[22, 6], [35, 3, 9], [50, 51, 17]]]
"""Anchor and positive; the last row also has a negative."""


def of_pairs() -> Batch:
    ends = [np.cumsum([len(part) for part in row]) - 1 for row in PARTS]
    return batch_of([list(chain(*row)) for row in PARTS], [indices.tolist() for indices in ends], [[] for _ in PARTS])


def pooled(model: Any, texts: list[list[int]], how: str) -> Tensor:
    """Pooled vectors (texts, hidden), normalized to length 1."""
    states = states_alone(model, texts)
    pool = {"mean": lambda h: h.mean(0), "first": lambda h: h[0], "last": lambda h: h[-1]}[how]
    return torch.stack([functional.normalize(pool(h), dim=0) for h in states])


@shows("objective.embedding.temperature", "objective.embedding.pooling")
@pytest.mark.parametrize(
    ("values", "pooling", "tau"),
    [({}, "mean", 0.05), ({"temperature": 0.4}, "mean", 0.4)]
    + [({"pooling": how, "temperature": 0.2}, how, 0.2) for how in ("first", "last")],
)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_contrastive_loss_follows_its_formula(
    family: str, values: dict[str, Any], pooling: str, tau: float
) -> None:
    objective = objective_of("embedding", **values)
    model = small_model(family, objective.head)
    vectors = [pooled(model, row, pooling) for row in PARTS]
    documents = torch.cat([row[1:] for row in vectors])  # 0, 1 and 2 are the positives, 3 is the negative
    losses = torch.stack([-torch.log_softmax(documents @ own[0] / tau, 0)[row] for row, own in enumerate(vectors)])
    batch = of_pairs()
    torch.testing.assert_close(objective.build().losses(model, batch), losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(objective.build().loss(model, batch), losses.sum(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(objective.head.outputs(model, batch), torch.cat(vectors), rtol=1e-6, atol=1e-6)
    assert objective.head == EmbeddingHead(pooling=pooling)  # type: ignore[arg-type]


@shows("objective.embedding.query_prefix", "objective.embedding.document_prefix")
def test_queries_and_documents_have_their_own_prefix() -> None:
    objective = objective_of("embedding", query_prefix="query: ", document_prefix="passage: ")
    (rendering,) = rendered(objective, text="Where?", others=("There.", "Nowhere."))
    assert rendering.parts == ("query: Where?", "passage: There.", "passage: Nowhere.")
    assert (rendering.text, rendering.targets) == ("", ())
    (plain,) = rendered(objective_of("embedding"), text="Where?", others=("There.",))
    assert plain.parts == ("Where?", "There.")


@shows("objective.few_shot.temperature", "objective.few_shot.pooling")
@pytest.mark.parametrize(
    ("values", "pooling", "tau"),
    [
        ({}, "mean", 0.1),
        ({"temperature": 0.7}, "mean", 0.7),
        ({"pooling": "first", "temperature": 0.3}, "first", 0.3),
        ({"pooling": "last", "temperature": 0.3}, "last", 0.3),
    ],
)
def test_the_supervised_contrastive_loss_follows_its_formula(values: dict[str, Any], pooling: str, tau: float) -> None:
    objective = objective_of("few_shot", labels=NAMES, **values)
    model = small_model("bert", objective.head)
    rows = [*ROWS, [14, 15], [18, 19, 20, 23]]
    classes = [0, 1, 0, 1, 0, 2]  # the last row is the only one of its class
    vectors = pooled(model, rows, pooling)
    expected = []
    for row, own in enumerate(vectors):
        others = [other for other in range(6) if other != row]
        scores = torch.log_softmax(vectors[others] @ own / tau, 0)
        same_class = [scores[n] for n, other in enumerate(others) if classes[other] == classes[row]]
        expected.append(-torch.stack(same_class).mean() if same_class else torch.zeros((), dtype=torch.float64))
    batch = batch_of(rows, targets=[[float(label)] for label in classes])
    losses = torch.stack(expected)
    torch.testing.assert_close(objective.build().losses(model, batch), losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(objective.build().loss(model, batch), losses.sum(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(objective.head.outputs(model, batch), vectors, rtol=1e-6, atol=1e-6)
    assert objective.head == EmbeddingClassifierHead(tuple(NAMES), pooling=pooling)  # type: ignore[arg-type]


# A teacher


@pytest.fixture(scope="module")
def teachers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models with the student's vocabulary and other weights."""
    directories = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        directories.append(tmp_path_factory.mktemp("teachers") / str(seed))
        model.save_pretrained(directories[-1])
        byte_tokenizer().save_pretrained(directories[-1])
    return directories


@shows("objective.distillation.teacher", "objective.distillation.temperature", "objective.distillation.label_weight")
@pytest.mark.parametrize(
    ("which", "values", "t", "share"),
    [
        (0, {}, 1.0, 0.0),
        (1, {}, 1.0, 0.0),
        (0, {"temperature": 2.5}, 2.5, 0.0),
        (1, {"temperature": 0.5, "label_weight": 0.3}, 0.5, 0.3),
        (0, {"label_weight": 1.0}, 1.0, 1.0),
    ],
)
def test_the_distillation_loss_follows_its_formula(
    which: int, values: dict[str, float], t: float, share: float, teachers: list[Path], tiny_model: Path
) -> None:
    model = load_model(Base(path=str(tiny_model)), torch.float32)
    use_document_attention(model)
    objective = objective_of("distillation", teacher=str(teachers[which]), **values)
    reference = ModelReference.find(str(teachers[which]))
    objective.check_reference(reference, Base(path=str(tiny_model)))
    built = objective.build([reference.packing_model(model.dtype, model.device)])
    loss_mask = [[1, 3, 4], [2], [1, 2], [4, 5, 6]]
    teacher = AutoModelForCausalLM.from_pretrained(teachers[which])
    student_logits, teacher_logits = (
        torch.cat(
            [row[[i - 1 for i in indices]] for row, indices in zip(logits_alone(m), loss_mask, strict=True)]
        ).double()
        for m in (model, teacher)
    )
    labels = torch.tensor([ids[index] for ids, indices in zip(ROWS, loss_mask, strict=True) for index in indices])
    own = -torch.log_softmax(student_logits, -1).gather(1, labels[:, None])[:, 0]
    p, q = torch.softmax(teacher_logits / t, -1), torch.softmax(student_logits / t, -1)
    expected = (1 - share) * t**2 * (p * (p / q).log()).sum() + share * own.sum()
    batch = batch_of(loss_mask=loss_mask)
    torch.testing.assert_close(built.loss(model, batch).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(built.losses(model, batch).double(), own, rtol=1e-4, atol=1e-5)
    assert objective.reference_paths == (str(teachers[which]),)
    (loaded,) = built.reference_models
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
