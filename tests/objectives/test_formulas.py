"""Objectives one by one: defaults, what they take from the rows, rendering, losses, and the meaning of outputs."""

import re
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from bytewise import byte_tokenizer
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from small_models import ROWS, batch_of, logits_alone, objective_of, small_model
from torch.nn import functional

from tunesmith.config.base import Base
from tunesmith.config.head import Head
from tunesmith.config.objective import ObjectiveConfig
from tunesmith.config.registry import OBJECTIVES
from tunesmith.data.example import Example, Source
from tunesmith.data.render import Renderer
from tunesmith.errors import UserError
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.heads.head_file import described_head
from tunesmith.heads.sequence_classification import MultiLabelHead, RegressionHead, SequenceClassificationHead
from tunesmith.heads.token_classification import TokenClassificationHead
from tunesmith.inference.model_reference import ModelReference
from tunesmith.objectives.embedding import _positives, roles
from tunesmith.objectives.few_shot import fitted_classifier
from tunesmith.objectives.labels import check_weights, count_labels, label_index

NAMES = ["calm", "bold", "dry"]
SOURCE = Source("rows", 3)


def examples_of(labels: Iterable[Any]) -> list[Example]:
    return [Example(Source("rows", row), text="w", label=label) for row, label in enumerate(labels, 1)]


def rendered(objective: Any, **example: Any) -> list[Any]:
    renderings: list[Any] = objective.render(Renderer(byte_tokenizer()), Example(SOURCE, **example))
    return renderings


REQUIRED: dict[str, dict[str, Any]] = {
    "distillation": {"teacher": "t"},
    **{kind: {"rewards": ["exact"]} for kind in ("grpo", "ppo", "online_dpo", "best_of_n")},
}
"""What has no default."""

PROPERTIES: dict[str, dict[str, Any]] = {
    "instruction": {"bases": ("decoder",), "overflow": "refuse", "loss_unit": "nats per loss token"},
    "text": {"bases": ("decoder",), "overflow": "split", "loss_unit": "nats per loss token"},
    "seq2seq": {"bases": ("encoder-decoder",), "overflow": "refuse", "loss_unit": "nats per loss token"},
    "classification": {
        "formats": ("classification",),
        "loss_unit": "nats per text",
    },
    "multi_label": {
        "formats": ("multi_label",),
        "loss_unit": "nats per label",
    },
    "regression": {
        "formats": ("regression",),
        "loss_unit": "squared standard deviations per text",
    },
    "token_classification": {
        "formats": ("words", "entities"),
        "bases": ("encoder",),
        "loss_unit": "nats per word",
    },
    "embedding": {
        "formats": ("pairs",),
        "loss_unit": "nats per pair",
        "rate_factor": 0.3,
    },
    "few_shot": {
        "formats": ("classification",),
        "loss_unit": "nats per text",
        "rate_factor": 0.3,
    },
    "distillation": {"bases": ("decoder",), "overflow": "refuse", "loss_unit": "nats per loss token"},
    **{
        kind: {
            "formats": ("prompts",),
            "bases": ("decoder",),
            "overflow": "refuse",
            "loss_unit": "mean reward, negated",
            "rate_factor": 0.1,
        }
        for kind in ("grpo", "ppo", "online_dpo", "best_of_n")
    },
    "graded_reward": {
        "formats": ("grades",),
        "bases": ("decoder",),
        "overflow": "refuse",
        "loss_unit": "nats per grade",
    },
    "process_reward": {
        "formats": ("steps",),
        "bases": ("decoder",),
        "overflow": "refuse",
        "loss_unit": "nats per step",
    },
    "reward": {
        "formats": ("preference", "ranking"),
        "bases": ("decoder",),
        "overflow": "refuse",
        "loss_unit": "nats per row",
    },
    **{
        kind: {
            "formats": formats,
            "bases": ("decoder",),
            "overflow": "refuse",
            "loss_unit": "nats per row",
            "rate_factor": 0.1,
        }
        for kind, formats in {
            "dpo": ("preference", "ranking"),
            "listwise": ("ranking", "preference"),
            "kto": ("rating", "preference"),
        }.items()
    },
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_objective_declares_its_rows_and_bases(kind: str) -> None:
    objective = objective_of(kind, **REQUIRED.get(kind, {}))
    common = {"formats": (), "bases": ("decoder", "encoder"), "overflow": "truncate", "rate_factor": 1.0}
    expected = {**common, "concatenates_rows": False, "output_scale": 1.0, **PROPERTIES[kind]}
    assert {name: getattr(objective, name) for name in expected} == expected
    assert objective.reference_paths == (("t",) if kind == "distillation" else ())
    assert objective.build().reference_models == ()


ROLLOUTS: dict[str, Any] = {
    "rewards": [{"function": "exact", "weight": 1.0, "options": {}, "name": None, "timeout": 600.0}],
    "reward": None,
    "prompts": 16,
    "max_new_tokens": 256,
    "temperature": 1.0,
    "passes": 1,
    "minibatches": 1,
    "max_kl": None,
    "sampler": None,
}
"""Of all objectives that learn from their own samples."""

PAIR_LOSS: dict[str, Any] = {
    "beta": 0.1,
    "loss": "sigmoid",
    "label_smoothing": 0.0,
    "target_margin": 0.5,
    "sft_weight": 0.0,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "instruction": {"label_smoothing": 0.0, "z_loss": 0.0, "learn": "assistant"},
    "text": {"label_smoothing": 0.0, "z_loss": 0.0, "concatenate": False},
    "seq2seq": {"label_smoothing": 0.0, "z_loss": 0.0},
    "classification": {"head_learning_rate": None, "labels": None, "class_weights": None, "label_smoothing": 0.0},
    "multi_label": {"head_learning_rate": None, "labels": None, "class_weights": None},
    "regression": {"head_learning_rate": None, "mean": None, "std": None},
    "token_classification": {"head_learning_rate": None, "labels": None},
    "embedding": {"temperature": 0.05, "pooling": "mean", "query_prefix": "", "document_prefix": ""},
    "few_shot": {"labels": None, "temperature": 0.1, "pooling": "mean"},
    "distillation": {"teacher": "t", "temperature": 1.0, "label_weight": 0.0, "learn": "assistant"},
    "grpo": {
        **ROLLOUTS,
        "max_sampler_weight": 2.0,
        "group_size": 8,
        "advantage": "group",
        "importance": "token",
        "clip": 0.2,
        "clip_high": None,
        "normalization": "tokens",
        "beta": 0.0,
        "kl_in": "loss",
        "resampling": 0,
        "skip_truncated": False,
    },
    "ppo": {
        **ROLLOUTS,
        "max_sampler_weight": 2.0,
        "group_size": 1,
        "passes": 4,
        "clip": 0.2,
        "value_clip": 0.2,
        "value_weight": 0.1,
        "value_learning_rate": None,
        "value_body": "shared",
        "gamma": 1.0,
        "lam": 0.95,
        "whiten": True,
        "whiten_rewards": False,
        "kl_weight": 0.05,
        "kl_target": None,
        "truncated_reward": None,
    },
    "process_reward": {"head_learning_rate": None},
    "graded_reward": {"head_learning_rate": None, "attributes": None, "lowest": None, "highest": None},
    "reward": {"head_learning_rate": None, "margin": 0.0, "centering": 0.0, "pairs": "all"},
    "dpo": {**PAIR_LOSS, "pairs": "all"},
    "online_dpo": {**ROLLOUTS, **PAIR_LOSS, "group_size": 4},
    "best_of_n": {**ROLLOUTS, "group_size": 8, "threshold": None},
    "listwise": {"beta": 0.1},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "baseline": "kl"},
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_objective_defaults_are_those_of_its_paper(kind: str) -> None:
    objective = objective_of(kind, **REQUIRED.get(kind, {}))
    assert objective.model_dump() == {"kind": kind, **DEFAULTS[kind]}


@pytest.mark.parametrize(
    ("setting", "refused", "accepted"),
    [
        ("instruction.label_smoothing", -0.1, 0.0),
        ("text.label_smoothing", 1.0, 0.9),
        ("seq2seq.z_loss", -0.1, 0.5),
        ("instruction.learn", "none", "last"),
        ("classification.label_smoothing", 1.0, 0.9),
        ("classification.label_smoothing", -0.1, 0.0),
        ("classification.head_learning_rate", 0.0, 0.5),
        ("classification.class_weights", "even", "balanced"),
        ("multi_label.head_learning_rate", 0.0, 0.5),
        ("regression.std", 0.0, 0.5),
        ("embedding.temperature", 0.0, 0.5),
        ("embedding.pooling", "max", "last"),
        ("few_shot.temperature", 0.0, 0.5),
        ("distillation.temperature", 0.0, 0.5),
        ("distillation.label_weight", -0.1, 0.0),
        ("distillation.label_weight", 1.1, 1.0),
        ("token_classification.lables", [], None),
        *((f"{kind}.group_size", 1, 2) for kind in ("grpo", "online_dpo", "best_of_n")),
        *((f"ppo.{name}", 0, 1) for name in ("group_size", "prompts", "max_new_tokens", "passes", "minibatches")),
        *((f"grpo.{name}", 0, 1) for name in ("prompts", "max_new_tokens", "passes", "minibatches")),
        *((f"grpo.{name}", 0.0, 0.5) for name in ("temperature", "max_kl", "clip", "clip_high")),
        *((f"grpo.{name}", -1, 0) for name in ("beta", "resampling")),
        ("grpo.max_sampler_weight", 0.9, 1.0),
        *((f"ppo.{name}", 0.0, 0.5) for name in ("clip", "value_clip", "value_learning_rate", "gamma", "kl_target")),
        *((f"ppo.{name}", -0.1, 0.0) for name in ("value_weight", "lam", "kl_weight")),
        *((f"ppo.{name}", 1.1, 1.0) for name in ("gamma", "lam")),
        *((f"{kind}.beta", 0.0, 0.5) for kind in ("dpo", "listwise", "kto", "online_dpo")),
        *((f"dpo.{name}", -0.1, 0.0) for name in ("label_smoothing", "sft_weight")),
        ("dpo.label_smoothing", 0.5, 0.4),
        *((f"kto.{name}", -0.1, 0.0) for name in ("desirable_weight", "undesirable_weight")),
        *((f"reward.{name}", -0.1, 0.0) for name in ("margin", "centering")),
    ],
)
def test_setting_out_of_range_is_refused(setting: str, refused: Any, accepted: Any) -> None:
    kind, name = setting.split(".")
    extra = REQUIRED.get(kind, {})
    with pytest.raises(ValidationError, match=name):
        objective_of(kind, **{**extra, name: refused})
    if accepted is not None:
        assert getattr(objective_of(kind, **{**extra, name: accepted}), name) == accepted


# What objectives take from the rows


def test_labels_are_sorted_and_counted_or_taken_from_the_recipe() -> None:
    names = ["b", "a", "b", "c", "b"]
    assert count_labels(iter(names), None, 2, "A classifier") == (["a", "b", "c"], {"b": 3, "a": 1, "c": 1})
    assert count_labels(iter(names), ("c", "d"), 2, "A classifier")[0] == ["c", "d"]
    assert count_labels(iter(["a"]), None, 1, "A tagger")[0] == ["a"]


@pytest.mark.parametrize(
    ("names", "minimum", "message"),
    [
        (["a", "a"], 2, "A tagger needs two classes or more, but the training rows have only 'a'."),
        ([], 2, "A tagger needs two classes or more, but the training rows have none."),
        ([], 1, "A tagger needs one class or more, but the training rows have none."),
    ],
)
def test_too_few_labels_are_refused_and_shown(names: list[str], minimum: int, message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        count_labels(names, None, minimum, "A tagger")


def test_weight_for_an_unknown_class_is_refused() -> None:
    for weights in (None, "balanced", {}, {"calm": 2.0, "dry": 1.0}):
        check_weights(weights, NAMES)  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=r"objective.class_weights: 'wet' is not a class. The classes are: calm, bold, dry\."
    ):
        check_weights({"calm": 2.0, "wet": 1.0}, NAMES)


def test_unknown_label_is_refused_and_the_first_eight_labels_are_shown() -> None:
    assert [label_index(name, NAMES, SOURCE) for name in NAMES] == [0, 1, 2]
    eight, nine = ([f"n{number}" for number in range(count)] for count in (8, 9))
    with pytest.raises(UserError, match=r"rows row 3: its label 'wet' .*n6, n7\)\. Fix"):
        label_index("wet", eight, SOURCE)
    with pytest.raises(UserError, match=r"rows row 3: a tag 'wet' .*n6, n7 …\)\. Fix"):
        label_index("wet", nine, SOURCE, "a tag")


@pytest.mark.parametrize("kind", ["classification", "multi_label"])
def test_class_weights_are_checked_with_and_without_labels_in_the_recipe(kind: str) -> None:
    rows = examples_of([("calm",), ("bold",)] if kind == "multi_label" else ["calm", "bold"])
    for labels in (None, NAMES):
        objective = objective_of(kind, labels=labels, class_weights={"wet": 2.0})
        with pytest.raises(UserError, match="'wet' is not a class"):
            objective.resolve(lambda: rows)
    known = objective_of(kind, labels=NAMES, class_weights={"dry": 2.0})
    assert known.resolve(lambda: pytest.fail("named labels need no rows")) == known


@pytest.mark.parametrize(
    ("kind", "rows", "weights"),
    [
        ("classification", ["dry"] * 6 + ["calm"] * 2, [8 / (2 * 6), 1.0, 8 / (2 * 2)]),
        ("multi_label", [("dry", "calm")] * 2 + [("dry",)] * 4 + [()] * 3, [3 / 6, 1.0, 7 / 2]),
    ],
)
def test_balanced_weights_are_those_of_the_named_labels_in_their_order(
    kind: str, rows: list[Any], weights: list[float]
) -> None:
    named = ["dry", "bold", "calm"]  # no row is bold
    resolved = objective_of(kind, labels=named, class_weights="balanced").resolve(lambda: examples_of(rows))
    assert resolved.labels == named
    assert resolved.class_weights == pytest.approx({"dry": weights[0], "calm": weights[2]})
    assert resolved.build().weights == pytest.approx(weights)


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("classification", ["a", "a"], "A classifier needs two classes or more, but the training rows have only 'a'"),
        ("multi_label", [(), ()], "A classifier needs one class or more, but the training rows have none"),
        ("few_shot", ["a", "a"], "A classifier needs two classes or more"),
        ("few_shot", ["a", "a", "b", "c"], "2 of 3 classes have only one row, such as 'b'. Few-shot"),
        ("regression", [2.5, 2.5], "Regression needs rows with different values"),
        ("regression", [], "Regression needs rows with different values"),
    ],
)
def test_rows_without_distinct_labels_or_values_are_refused(kind: str, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        objective_of(kind).resolve(lambda: examples_of(rows))


@pytest.mark.parametrize("kind", ["classification", "multi_label"])
def test_a_label_that_is_not_named_is_refused_with_its_row_also_with_balanced_weights(kind: str) -> None:
    def example(name: str) -> Example:
        return Example(SOURCE, text="hm", label=name if kind == "classification" else (name,))

    objective = objective_of(kind, labels=["a", "b"], class_weights="balanced")
    resolved = objective.resolve(lambda: [example(name) for name in "aabz"])
    assert list(resolved.class_weights) == ["a", "b"]
    with pytest.raises(UserError, match=rf"^{SOURCE}: .*'z' is not in objective.labels"):
        resolved.render(None, example("z"))


def test_few_shot_needs_two_rows_per_class_and_none_if_labels_are_named() -> None:
    assert objective_of("few_shot").resolve(lambda: examples_of("abab")).labels == ["a", "b"]
    named = objective_of("few_shot", labels=["a", "z"])
    assert named.resolve(lambda: pytest.fail("named labels need no rows")) is named


def test_tags_come_from_all_words_of_all_rows() -> None:
    rows = [
        Example(SOURCE, text="a b", spans=((0, 1, "O"), (2, 3, "B-X"))),
        Example(SOURCE, text="c"),
        Example(SOURCE, text="c", spans=((0, 1, "I-X"),)),
    ]
    resolved = objective_of("token_classification").resolve(lambda: rows)
    assert resolved.head == TokenClassificationHead(("B-X", "I-X", "O"))
    assert resolved.head.metrics == ("entity_f1", "tag_accuracy")
    named = objective_of("token_classification", labels=["I-X", "O"])
    assert named.resolve(lambda: pytest.fail("named labels need no rows")).head.metrics == ("tag_accuracy",)
    with pytest.raises(UserError, match="A tagger needs two classes or more, but the training rows have only 'I-X'"):
        objective_of("token_classification").resolve(lambda: rows[1:])


def test_single_remaining_class_is_refused_before_anything_is_loaded() -> None:
    from tunesmith.data.tokens import TokenTable

    def table(classes: list[float]) -> TokenTable:
        ids, mask = np.array([5], np.int32), np.ones(1, np.bool_)
        return TokenTable.build([(ids, mask, SOURCE, (target,)) for target in classes])

    objective = objective_of("few_shot", labels=NAMES)
    objective.check(table([1.0, 1.0, 2.0]))
    with pytest.raises(UserError, match="The training rows contain only one class"):
        objective.check(table([1.0, 1.0]))
    assert objective_of("classification").check(table([1.0])) is None


# Rendering rows


def test_rows_are_rendered_with_their_targets() -> None:
    (text,) = rendered(objective_of("classification", labels=NAMES), text="hm", label="dry")
    assert (text.text, text.loss_spans, text.targets, text.document) == ("hm", (), (2,), False)
    (several,) = rendered(objective_of("multi_label", labels=NAMES), text="hm", label=("dry", "calm"))
    assert (several.text, several.targets) == ("hm", (1.0, 0.0, 1.0))
    (none,) = rendered(objective_of("multi_label", labels=NAMES), text="hm", label=())
    assert none.targets == (0.0, 0.0, 0.0)
    (value,) = rendered(objective_of("regression"), text="hm", label=-2.5)
    assert (value.text, value.targets) == ("hm", (-2.5,))
    spans = ((0, 2, "dry"), (3, 5, "calm"))
    (words,) = rendered(objective_of("token_classification", labels=NAMES), text="hm so", spans=spans)
    assert (words.text, words.loss_spans, words.targets) == ("hm so", ((0, 2), (3, 5)), (2.0, 0.0))
    with pytest.raises(UserError, match="one of its labels 'wet' is not in"):
        rendered(objective_of("multi_label", labels=NAMES), text="hm", label=("calm", "wet"))


def test_raw_text_is_a_document_for_text_and_refused_where_an_answer_is_needed() -> None:
    (document,) = rendered(objective_of("text"), text="hm so")
    assert (document.text, document.loss_spans, document.document) == ("hm so", ((0, 5),), True)
    for kind, hint in (
        ("instruction", "Set objective: {kind: text}"),
        ("seq2seq", "Name the question and answer columns"),
    ):
        with pytest.raises(UserError, match=f"rows row 3: raw text has no answer to train on. {hint}"):
            rendered(objective_of(kind), text="hm so")
    (distilled,) = rendered(objective_of("distillation", teacher="t"), text="hm so")
    assert distilled.loss_spans == ((0, 5),)


def test_reasoning_is_part_of_the_target_for_seq2seq() -> None:
    answer = {"role": "assistant", "content": "Four.", "reasoning_content": "Add them."}
    (pair,) = rendered(objective_of("seq2seq"), messages=({"role": "user", "content": "Two and two?"}, answer))
    assert (pair.source, pair.text) == ("Two and two?", "<think>\nAdd them.\n</think>\n\nFour.")
    assert pair.loss_spans == ((0, len(pair.text)),)


def test_chat_is_one_text_for_text_and_source_and_target_for_seq2seq() -> None:
    chat = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "Four."},
    )
    (full,) = rendered(objective_of("text"), messages=chat)
    assert [full.text[start:end] for start, end in full.loss_spans] == [full.text.rstrip()]
    (pair,) = rendered(objective_of("seq2seq"), messages=chat)
    assert (pair.text, pair.source, pair.loss_spans) == ("Four.", "Be brief.\n\nWhat is 2 + 2?", ((0, 5),))


# Outputs


@pytest.mark.parametrize(
    ("kind", "head", "activation"),
    [
        ("classification", SequenceClassificationHead(tuple(NAMES)), lambda z: torch.softmax(z, -1)),
        ("multi_label", MultiLabelHead(tuple(NAMES)), torch.sigmoid),
        ("regression", RegressionHead(), lambda z: z),
    ],
)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_head_outputs_are_class_probabilities_label_probabilities_or_values(
    family: str, kind: str, head: Head, activation: Any
) -> None:
    objective = objective_of(kind, **({} if kind == "regression" else {"labels": NAMES}))
    assert objective.head == head
    model = small_model(family, objective.head)
    logits = torch.stack(logits_alone(model))
    batch = batch_of(targets=[[0.0] * (len(NAMES) if kind == "multi_label" else 1)] * 4)
    outputs = objective.head.outputs(model, batch)
    torch.testing.assert_close(outputs.double(), activation(logits), rtol=1e-5, atol=1e-6)
    if kind == "classification":
        torch.testing.assert_close(outputs.sum(-1), torch.ones(4))


def test_tag_probabilities_are_at_their_words_and_the_loss_is_the_formula() -> None:
    objective = objective_of("token_classification", labels=NAMES)
    model = small_model("bert", objective.head)
    words = [[1, 3], [2], [0, 1], [2, 5, 6]]
    tags = [[2.0, 0.0], [1.0], [0.0, 2.0], [1.0, 1.0, 2.0]]
    batch = batch_of(loss_mask=words, targets=tags)
    logits = torch.cat([row[positions] for row, positions in zip(logits_alone(model), words, strict=True)])
    torch.testing.assert_close(
        objective.head.outputs(model, batch).double(), torch.softmax(logits, -1), rtol=1e-5, atol=1e-6
    )
    targets = torch.tensor(list(chain(*tags))).long()
    expected = -torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(objective.build().losses(model, batch).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(objective.build().loss(model, batch).double(), expected.sum(), rtol=1e-5, atol=1e-5)


def test_evaluation_has_no_gradients_and_training_has() -> None:
    for kind in ("classification", "token_classification", "embedding", "few_shot", "text"):
        objective = objective_of(kind, **({"labels": NAMES} if "class" in kind or kind == "few_shot" else {}))
        family = "llama" if kind == "text" else "bert"
        model = small_model(family, objective.head).requires_grad_(True)
        targets = {"embedding": [[]] * 4, "text": None}.get(kind, [[0.0], [1.0], [0.0], [1.0]])
        batch = batch_of([ids[:2] for ids in ROWS], [[0, 1]] * 4 if kind == "embedding" else None, targets)
        assert not objective.build().losses(model, batch).requires_grad
        objective.build().loss(model, batch).backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        assert sum(gradient.abs().sum() for gradient in gradients) > 1e-3, kind


def test_objective_without_a_head_has_no_outputs_and_no_head_learning_rate() -> None:
    objective = objective_of("instruction")
    assert objective.head == CausalLMHead()
    assert objective.build().fit_classifier(lambda: pytest.fail("no vectors are needed")) is None
    assert objective.initialize_head(None) is None
    assert objective.resolve(list) is objective
    with pytest.raises(UserError):
        objective.head.outputs(None, None)
    with pytest.raises(UserError):
        objective.head_learning_rate_at(32)


# Regression


def value_model(family: str) -> Any:
    return small_model(family, RegressionHead())


def test_head_without_bias_is_scaled_and_values_far_from_0_are_refused() -> None:
    model = value_model("llama")
    before = model.score.weight.detach().clone()
    objective_of("regression", mean=25.0, std=2.5).initialize_head(model)  # exactly ten standard deviations away
    torch.testing.assert_close(model.score.weight.detach(), 2.5 * before)
    for mean in (25.1, -25.1):
        with pytest.raises(
            UserError, match=rf"the values have mean {mean} and standard deviation 2.5, .* Subtract {mean}"
        ):
            objective_of("regression", mean=mean, std=2.5).initialize_head(value_model("llama"))
    objective_of("regression", mean=1e6, std=2.5).initialize_head(value_model("bert"))


@pytest.mark.parametrize("values", [{}, {"mean": 0.0, "std": 1.0}])
def test_head_for_values_around_0_starts_at_0(values: dict[str, float]) -> None:
    model = value_model("bert")
    before = model.classifier.weight.detach().clone()
    objective = objective_of("regression", **values)
    objective.initialize_head(model)
    assert model.classifier.bias.tolist() == [0.0]
    torch.testing.assert_close(model.classifier.weight.detach(), before)
    assert objective.output_scale == 1.0


def test_without_a_standard_deviation_the_loss_is_the_squared_error() -> None:
    model, batch = value_model("bert").eval(), batch_of(targets=[[1.0], [2.0], [-3.0], [0.5]])
    expected = (torch.stack(logits_alone(model))[:, 0] - torch.tensor([1.0, 2.0, -3.0, 0.5])).square()
    torch.testing.assert_close(objective_of("regression").build().losses(model, batch), expected.float())


def test_only_the_last_layer_of_a_deep_head_is_initialized() -> None:
    model = value_model("roberta")
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    objective_of("regression", mean=-3.0, std=0.25).initialize_head(model)
    for name, each in model.named_parameters():
        expected = before[name] * (0.25 if name == "classifier.out_proj.weight" else 1.0)
        expected = torch.full_like(expected, -3.0) if name == "classifier.out_proj.bias" else expected
        torch.testing.assert_close(each.detach(), expected, msg=name)


# Embeddings


def pairs(texts: list[list[list[int]]]) -> Any:
    ends = [(np.cumsum([len(part) for part in row]) - 1).tolist() for row in texts]
    return batch_of([list(chain(*row)) for row in texts], ends, [[] for _ in texts])


A, P, B, Q, C, R, N = [5], [6, 7], [8, 9], [10], [11, 12], [13], [14, 15]


def test_anchors_documents_and_targets_are_separated_in_a_batch() -> None:
    anchors, documents, targets = roles(pairs([[A, P], [B, Q, N], [C, R]]))
    assert anchors.tolist() == [0, 2, 5]
    assert documents.tolist() == [1, 3, 4, 6]
    assert targets.tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("rows", "positives"),
    [
        pytest.param([[A, P], [B, Q]], [[1, 0], [0, 1]], id="all texts differ"),
        pytest.param([[A, P], [B, P]], [[1, 1], [1, 1]], id="repeated positive"),
        pytest.param([[A, P], [A, Q]], [[1, 1], [1, 1]], id="repeated anchor"),
        pytest.param(
            [[A, P, N], [A, Q], [C, R]], [[1, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 1]], id="negatives stay negative"
        ),
        pytest.param([[A, P], [B, Q, P]], [[1, 0, 1], [0, 1, 0]], id="positive is another row's negative"),
        pytest.param([[A, P], [P, Q]], [[1, 0], [0, 1]], id="positive is another row's anchor"),
    ],
)
def test_a_rows_positives_are_never_its_negatives(rows: list[list[list[int]]], positives: list[list[int]]) -> None:
    batch = pairs(rows)
    anchors, documents, targets = roles(batch)
    assert _positives(batch, anchors, documents, targets).int().tolist() == positives
    objective = objective_of("embedding", temperature=0.5)
    model = small_model("bert", objective.head)
    vectors = objective.head.outputs(model, batch)
    scores = vectors[anchors] @ vectors[documents].T / 0.5
    for row, loss in enumerate(objective.build().losses(model, batch)):
        negatives = [n for n in range(len(documents)) if not positives[row][n]]
        kept = torch.stack([scores[row, targets[row]], *(scores[row, n] for n in negatives)])
        torch.testing.assert_close(loss, torch.logsumexp(kept, 0) - kept[0])


# Few-shot


def test_few_shot_loss_is_0_for_one_row_and_for_two_rows_of_one_class() -> None:
    objective = objective_of("few_shot", labels=NAMES)
    model = small_model("bert", objective.head).requires_grad_(True)
    single = batch_of([ROWS[0]], targets=[[1.0]])
    assert objective.build().losses(model, single).tolist() == [0.0]
    objective.build().loss(model, single).backward()
    assert all(each.grad is None or each.grad.abs().max() == 0 for each in model.parameters())
    two = objective.build().losses(model, batch_of(ROWS[:2], targets=[[1.0], [1.0]]))
    torch.testing.assert_close(two, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def clusters(classes: int, rows: int, separation: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    targets = np.arange(rows) % classes
    centers = generator.normal(size=(classes, 6))
    return generator.normal(size=(rows, 6)) + separation * centers[targets], targets


@pytest.mark.parametrize(
    ("rows", "separation", "classes", "strength"),
    [(9, 0.3, 3, 0.1), (12, 0.3, 2, 1.0), (12, 1.0, 3, 10.0), (9, 2.0, 3, 100.0), (24, 0.3, 2, 1.0)],
)
def test_fitted_head_has_the_strength_that_grid_search_chooses(
    rows: int, separation: float, classes: int, strength: float
) -> None:
    points, targets = clusters(classes, rows, separation)
    folds = StratifiedKFold(min(4, rows // classes), shuffle=True, random_state=0)
    grid = {"C": [0.1, 1.0, 10.0, 100.0]}
    search = GridSearchCV(LogisticRegression(max_iter=1000), grid, scoring="neg_log_loss", cv=folds).fit(
        points, targets
    )
    assert search.best_params_ == {"C": strength}
    head = fitted_classifier(points, targets, classes)
    predicted = torch.softmax(head(torch.tensor(points, dtype=torch.float32)), -1).detach().numpy()
    np.testing.assert_allclose(predicted, search.predict_proba(points), atol=2e-5)


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("classes", [3, 4])
def test_class_without_rows_keeps_its_index_and_has_probability_0(classes: int, missing: int) -> None:
    points, targets = clusters(classes, 40, 1.0)
    kept = targets != missing
    head = fitted_classifier(points[kept], targets[kept], classes)
    predicted = torch.softmax(head(torch.tensor(points, dtype=torch.float32)), -1).detach().numpy()
    assert predicted.shape == (40, classes)
    assert predicted[:, missing].max() < 1e-30
    present = [label for label in range(classes) if label != missing]
    fits = [
        LogisticRegression(C=c, max_iter=1000).fit(points[kept], targets[kept]).predict_proba(points)
        for c in (0.1, 1.0, 10.0, 100.0)
    ]
    assert min(np.abs(predicted[:, present] - fit).max() for fit in fits) < 2e-5


def test_class_with_one_row_is_fitted_with_strength_1() -> None:
    points, targets = clusters(2, 9, 1.0)
    targets[:] = 0
    targets[4] = 1
    expected = LogisticRegression(C=1.0, max_iter=1000).fit(points, targets).predict_proba(points)
    predicted = torch.softmax(fitted_classifier(points, targets, 2)(torch.tensor(points, dtype=torch.float32)), -1)
    np.testing.assert_allclose(predicted.detach().numpy(), expected, atol=1e-5)


def test_few_shot_fits_a_head_and_outputs_its_probabilities() -> None:
    objective = objective_of("few_shot", labels=NAMES)
    points, targets = clusters(3, 30, 2.0)
    head = objective.build().fit_classifier(lambda: (points, targets[:, None].astype(np.float32)))
    expected = fitted_classifier(points, targets, 3)
    torch.testing.assert_close(head.weight, expected.weight)
    torch.testing.assert_close(head.bias, expected.bias)
    model = small_model("bert", objective.head, dtype=torch.float32)
    batch = batch_of(targets=[[0.0]] * 4)
    own = torch.nn.Linear(32, 3)
    vectors = objective.head.outputs(model, batch)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    fitted = objective.head.with_classifier(own)
    torch.testing.assert_close(fitted.outputs(model, batch), torch.softmax(own(vectors), -1))
    assert described_head(fitted) == described_head(objective.head), "it is stored as the same head"


# Distillation


def test_teacher_that_does_not_generate_text_is_refused(tmp_path: Any) -> None:
    model = small_model("bert", SequenceClassificationHead(tuple(NAMES)), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=f"objective.teacher: {tmp_path} does not generate text. Use a causal language model instead."
    ):
        objective_of("distillation", teacher=str(tmp_path)).check_reference(ModelReference.find(str(tmp_path)), Base())


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_distillation_loss_is_hintons_for_any_chunk_size_and_vocabulary_size(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.models.forward.CHUNK", chunk)
    student, teacher = small_model(), small_model("gpt2", vocab_size=70)
    objective = objective_of("distillation", teacher="t", temperature=2.5, label_weight=0.3)
    objective = objective.build([teacher])
    student_logits, teacher_logits = (
        torch.cat([logits[:-1, :64] for logits in logits_alone(model)]) for model in (student, teacher)
    )
    labels = torch.tensor([token for ids in ROWS for token in ids[1:]])
    own = functional.cross_entropy(student_logits, labels, reduction="sum")
    p, q = torch.log_softmax(teacher_logits / 2.5, -1), torch.log_softmax(student_logits / 2.5, -1)
    expected = 0.7 * 2.5**2 * (p.exp() * (p - q)).sum() + 0.3 * own
    ours = objective.loss(student.requires_grad_(True), batch_of())
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_every_objective_is_in_the_registry_under_its_kind() -> None:
    for kind in OBJECTIVES:
        objective = OBJECTIVES.load(kind)
        assert issubclass(objective, ObjectiveConfig)
        assert objective.model_fields["kind"].default == kind
