"""Objectives by hand: what their rows settle, what they are judged on, and what a model's outputs mean."""

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

from tunesmith.config.recipe import Base
from tunesmith.config.registry import OBJECTIVES, ObjectiveConfig, named_kind
from tunesmith.data.example import Example, Source
from tunesmith.data.render import Renderer
from tunesmith.ending import VOCABULARY, Ending
from tunesmith.errors import UserError
from tunesmith.objectives.embedding import _also_right, roles
from tunesmith.objectives.few_shot import fitted_head
from tunesmith.objectives.labels import check_weights, found, place_of

NAMES = ["calm", "bold", "dry"]
SOURCE = Source("rows", 3)


def examples_of(labels: Iterable[Any]) -> list[Example]:
    return [Example(Source("rows", place + 1), text="w", label=each) for place, each in enumerate(labels)]


def rendered(objective: Any, **example: Any) -> list[Any]:
    given: list[Any] = objective.render(Renderer(byte_tokenizer()), Example(SOURCE, **example))
    return given


WHAT: dict[str, dict[str, Any]] = {
    "instruction": {"bases": ("decoder",), "overflow": "refuse", "loss_unit": "nats a learnt token"},
    "text": {"bases": ("decoder",), "overflow": "split", "loss_unit": "nats a learnt token"},
    "seq2seq": {"bases": ("encoder-decoder",), "overflow": "refuse", "loss_unit": "nats a learnt token"},
    "classification": {
        "formats": ("classification",),
        "metrics": ("accuracy", "macro_f1", "calibration_error"),
        "loss_unit": "nats a text",
    },
    "multi_label": {
        "formats": ("multi_label",),
        "metrics": ("exact_labels", "micro_f1", "macro_f1_of_labels", "calibration_of_labels"),
        "loss_unit": "nats a label",
    },
    "regression": {
        "formats": ("regression",),
        "metrics": ("root_mean_square_error", "correlation", "rank_correlation"),
        "loss_unit": "squared spreads a text",
    },
    "token_classification": {
        "formats": ("words", "entities"),
        "bases": ("encoder",),
        "metrics": ("tag_accuracy",),
        "loss_unit": "nats a word",
    },
    "embedding": {
        "formats": ("pairs",),
        "metrics": ("found_first", "found_in_ten", "reciprocal_rank"),
        "loss_unit": "nats a pair",
        "rate_share": 0.3,
    },
    "few_shot": {
        "formats": ("classification",),
        "metrics": ("accuracy", "macro_f1", "calibration_error"),
        "loss_unit": "nats a text",
        "rate_share": 0.3,
    },
    "distillation": {"bases": ("decoder",), "overflow": "refuse", "loss_unit": "nats a learnt token"},
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_an_objective_says_which_rows_and_bases_it_takes_and_how_it_is_judged(kind: str) -> None:
    objective = objective_of(kind, **({"teacher": "t"} if kind == "distillation" else {}))
    told = {"formats": (), "metrics": (), "bases": ("decoder", "encoder"), "overflow": "truncate", "rate_share": 1.0}
    expected = {**told, "joins_rows": False, "output_scale": 1.0, **WHAT[kind]}
    assert {name: getattr(objective, name) for name in expected} == expected
    assert objective.reads == (("t",) if kind == "distillation" else ())
    assert objective.reference_models == ()


DEFAULTS: dict[str, dict[str, Any]] = {
    "instruction": {"label_smoothing": 0.0, "z_loss": 0.0, "learn": "assistant"},
    "text": {"label_smoothing": 0.0, "z_loss": 0.0, "concatenate": False},
    "seq2seq": {"label_smoothing": 0.0, "z_loss": 0.0},
    "classification": {"head_learning_rate": None, "labels": None, "class_weights": None, "label_smoothing": 0.0},
    "multi_label": {"head_learning_rate": None, "labels": None, "class_weights": None},
    "regression": {"head_learning_rate": None, "mean": None, "spread": None},
    "token_classification": {"head_learning_rate": None, "labels": None},
    "embedding": {"temperature": 0.05, "pooling": "mean", "query_prefix": "", "document_prefix": ""},
    "few_shot": {"labels": None, "temperature": 0.1, "pooling": "mean"},
    "distillation": {"teacher": "t", "temperature": 1.0, "label_share": 0.0, "learn": "assistant"},
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_an_objective_without_settings_has_its_papers(kind: str) -> None:
    objective = objective_of(kind, **({"teacher": "t"} if kind == "distillation" else {}))
    assert objective.model_dump() == {"kind": kind, **DEFAULTS[kind]}


@pytest.mark.parametrize(
    ("setting", "refused", "taken"),
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
        ("regression.spread", 0.0, 0.5),
        ("embedding.temperature", 0.0, 0.5),
        ("embedding.pooling", "max", "last"),
        ("few_shot.temperature", 0.0, 0.5),
        ("distillation.temperature", 0.0, 0.5),
        ("distillation.label_share", -0.1, 0.0),
        ("distillation.label_share", 1.1, 1.0),
        ("token_classification.lables", [], None),
    ],
)
def test_a_setting_out_of_its_range_is_refused(setting: str, refused: Any, taken: Any) -> None:
    kind, name = setting.split(".")
    more = {"teacher": "t"} if kind == "distillation" else {}
    with pytest.raises(ValidationError, match=name):
        objective_of(kind, **{**more, name: refused})
    if taken is not None:
        assert getattr(objective_of(kind, **{**more, name: taken}), name) == taken


# What the rows settle


def test_names_are_found_sorted_and_counted_or_taken_as_they_are_wanted() -> None:
    names = ["b", "a", "b", "c", "b"]
    assert found(iter(names), None, 2, "A classifier") == (["a", "b", "c"], {"b": 3, "a": 1, "c": 1})
    assert found(iter(names), ("c", "d"), 2, "A classifier")[0] == ["c", "d"]
    assert found(iter(["a"]), None, 1, "A tagger")[0] == ["a"]


@pytest.mark.parametrize(
    ("names", "least", "said"),
    [
        (["a", "a"], 2, "A tagger needs two classes or more, and the training rows hold only 'a'."),
        ([], 2, "A tagger needs two classes or more, and the training rows hold none."),
        ([], 1, "A tagger needs one class or more, and the training rows hold none."),
    ],
)
def test_too_few_names_are_refused_with_those_that_there_are(names: list[str], least: int, said: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        found(names, None, least, "A tagger")


def test_a_weight_of_no_class_is_refused() -> None:
    for weights in (None, "balanced", {}, {"calm": 2.0, "dry": 1.0}):
        check_weights(weights, NAMES)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"objective.class_weights: 'wet' is no class. Known: calm, bold, dry\."):
        check_weights({"calm": 2.0, "wet": 1.0}, NAMES)


def test_a_label_that_is_none_is_refused_with_the_first_eight_that_are() -> None:
    assert [place_of(name, NAMES, SOURCE) for name in NAMES] == [0, 1, 2]
    eight, nine = ([f"n{number}" for number in range(count)] for count in (8, 9))
    with pytest.raises(UserError, match=r"rows row 3: its label 'wet' .*n6, n7\)\. Mend"):
        place_of("wet", eight, SOURCE)
    with pytest.raises(UserError, match=r"rows row 3: a tag 'wet' .*n6, n7 …\)\. Mend"):
        place_of("wet", nine, SOURCE, "a tag")


@pytest.mark.parametrize("kind", ["classification", "multi_label"])
def test_weights_are_checked_whether_labels_are_named_or_found(kind: str) -> None:
    rows = examples_of([("calm",), ("bold",)] if kind == "multi_label" else ["calm", "bold"])
    for labels in (None, NAMES):
        objective = objective_of(kind, labels=labels, class_weights={"wet": 2.0})
        with pytest.raises(UserError, match="'wet' is no class"):
            objective.resolve(lambda: rows)
    known = objective_of(kind, labels=NAMES, class_weights={"dry": 2.0})
    assert known.resolve(lambda: pytest.fail("named labels need no rows")) == known


@pytest.mark.parametrize(
    ("kind", "rows", "said"),
    [
        ("classification", ["a", "a"], "A classifier needs two classes or more, and the training rows hold only 'a'"),
        ("multi_label", [(), ()], "A classifier needs one class or more, and the training rows hold none"),
        ("few_shot", ["a", "a"], "A classifier needs two classes or more"),
        ("few_shot", ["a", "a", "b", "c"], "2 of 3 classes have but one row, such as 'b', and rows"),
        ("regression", [2.5, 2.5], "Regression needs rows of different values"),
        ("regression", [], "Regression needs rows of different values"),
    ],
)
def test_rows_that_teach_nothing_are_refused(kind: str, rows: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        objective_of(kind).resolve(lambda: examples_of(rows))


def test_two_rows_of_each_class_are_enough_and_named_labels_need_none() -> None:
    assert objective_of("few_shot").resolve(lambda: examples_of("abab")).labels == ["a", "b"]
    named = objective_of("few_shot", labels=["a", "z"])
    assert named.resolve(lambda: pytest.fail("named labels need no rows")) is named


def test_tags_are_those_of_all_words_of_all_rows() -> None:
    rows = [
        Example(SOURCE, text="a b", spans=((0, 1, "O"), (2, 3, "B-X"))),
        Example(SOURCE, text="c"),
        Example(SOURCE, text="c", spans=((0, 1, "I-X"),)),
    ]
    resolve = objective_of("token_classification").resolve(lambda: rows)
    assert resolve.ending == Ending("tags", ("B-X", "I-X", "O"))
    assert resolve.metrics == ("entity_f1", "tag_accuracy")
    named = objective_of("token_classification", labels=["I-X", "O"])
    assert named.resolve(lambda: pytest.fail("named labels need no rows")).metrics == ("tag_accuracy",)
    with pytest.raises(UserError, match="A tagger needs two classes or more, and the training rows hold only 'I-X'"):
        objective_of("token_classification").resolve(lambda: rows[1:])


def test_a_row_of_one_class_that_is_left_is_refused_before_anything_is_loaded() -> None:
    from tunesmith.data.tokens import TokenTable

    def table(classes: list[float]) -> TokenTable:
        ids, mark = np.array([5], np.int32), np.ones(1, np.bool_)
        return TokenTable.build([(ids, mark, SOURCE, (each,)) for each in classes])

    objective = objective_of("few_shot", labels=NAMES)
    objective.check(table([1.0, 1.0, 2.0]))
    with pytest.raises(UserError, match="Only one class is left among the training rows"):
        objective.check(table([1.0, 1.0]))
    assert objective_of("classification").check(table([1.0])) is None


# What a row becomes


def test_rows_become_what_is_told_of_them() -> None:
    (text,) = rendered(objective_of("classification", labels=NAMES), text="hm", label="dry")
    assert (text.text, text.loss_mask, text.targets, text.document) == ("hm", (), (2,), False)
    (several,) = rendered(objective_of("multi_label", labels=NAMES), text="hm", label=("dry", "calm"))
    assert (several.text, several.targets) == ("hm", (1.0, 0.0, 1.0))
    (none,) = rendered(objective_of("multi_label", labels=NAMES), text="hm", label=())
    assert none.targets == (0.0, 0.0, 0.0)
    (value,) = rendered(objective_of("regression"), text="hm", label=-2.5)
    assert (value.text, value.targets) == ("hm", (-2.5,))
    spans = ((0, 2, "dry"), (3, 5, "calm"))
    (words,) = rendered(objective_of("token_classification", labels=NAMES), text="hm so", spans=spans)
    assert (words.text, words.loss_mask, words.targets) == ("hm so", ((0, 2), (3, 5)), (2.0, 0.0))
    with pytest.raises(UserError, match="one of its labels 'wet' is none of"):
        rendered(objective_of("multi_label", labels=NAMES), text="hm", label=("calm", "wet"))


def test_raw_text_is_learnt_as_a_document_and_refused_where_an_answer_is_wanted() -> None:
    (document,) = rendered(objective_of("text"), text="hm so")
    assert (document.text, document.loss_mask, document.document) == ("hm so", ((0, 5),), True)
    for kind, hint in (("instruction", "Set objective: {kind: text}"), ("seq2seq", "Name the columns")):
        with pytest.raises(UserError, match=f"rows row 3: raw text has no answer to learn from. {hint}"):
            rendered(objective_of(kind), text="hm so")
    (taught,) = rendered(objective_of("distillation", teacher="t"), text="hm so")
    assert taught.loss_mask == ((0, 5),)


def test_a_chat_is_learnt_whole_as_text_and_apart_by_an_encoder_decoder() -> None:
    chat = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "Four."},
    )
    (whole,) = rendered(objective_of("text"), messages=chat)
    assert [whole.text[start:end] for start, end in whole.loss_mask] == [whole.text.rstrip()]
    (pair,) = rendered(objective_of("seq2seq"), messages=chat)
    assert (pair.text, pair.source, pair.loss_mask) == ("Four.", "Be brief.\n\nWhat is 2 + 2?", ((0, 5),))


# Outputs


@pytest.mark.parametrize(
    ("kind", "problem", "says"),
    [
        ("classification", "single_label_classification", lambda z: torch.softmax(z, -1)),
        ("multi_label", "multi_label_classification", torch.sigmoid),
        ("regression", "regression", lambda z: z),
    ],
)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_heads_outputs_are_chances_of_classes_of_labels_or_values(
    family: str, kind: str, problem: Any, says: Any
) -> None:
    labels = ("value",) if kind == "regression" else tuple(NAMES)
    objective = objective_of(kind, **({} if kind == "regression" else {"labels": NAMES}))
    assert objective.ending == Ending("classes", labels, problem)
    model = small_model(family, objective.ending)
    logits = torch.stack(logits_alone(model))
    batch = batch_of(told=[[0.0] * (len(labels) if kind == "multi_label" else 1)] * 4)
    outputs = objective.outputs(model, batch)
    torch.testing.assert_close(outputs.double(), says(logits), rtol=1e-5, atol=1e-6)
    if kind == "classification":
        torch.testing.assert_close(outputs.sum(-1), torch.ones(4))


def test_tags_have_chances_at_their_own_words_and_the_loss_of_the_formula() -> None:
    objective = objective_of("token_classification", labels=NAMES)
    model = small_model("bert", objective.ending)
    words = [[1, 3], [2], [0, 1], [2, 5, 6]]
    tags = [[2.0, 0.0], [1.0], [0.0, 2.0], [1.0, 1.0, 2.0]]
    batch = batch_of(loss_mask=words, told=tags)
    logits = torch.cat([each[places] for each, places in zip(logits_alone(model), words, strict=True)])
    torch.testing.assert_close(
        objective.outputs(model, batch).double(), torch.softmax(logits, -1), rtol=1e-5, atol=1e-6
    )
    wanted = torch.tensor(list(chain(*tags))).long()
    expected = -torch.log_softmax(logits, -1).gather(1, wanted[:, None])[:, 0]
    torch.testing.assert_close(objective.losses(model, batch).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(objective.loss(model, batch).double(), expected.sum(), rtol=1e-5, atol=1e-5)


def test_evaluation_makes_no_gradients_and_training_does() -> None:
    for kind in ("classification", "token_classification", "embedding", "few_shot", "text"):
        objective = objective_of(kind, **({"labels": NAMES} if "class" in kind or kind == "few_shot" else {}))
        family = "llama" if kind == "text" else "bert"
        model = small_model(family, objective.ending).requires_grad_(True)
        told = {"embedding": [[]] * 4, "text": None}.get(kind, [[0.0], [1.0], [0.0], [1.0]])
        batch = batch_of([ids[:2] for ids in ROWS], [[0, 1]] * 4 if kind == "embedding" else None, told)
        assert not objective.losses(model, batch).requires_grad
        objective.loss(model, batch).backward()
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        assert sum(each.abs().sum() for each in gradients) > 1e-3, kind


def test_an_objective_without_outputs_or_a_head_of_its_own_says_so() -> None:
    objective = objective_of("instruction")
    assert objective.ending == VOCABULARY
    assert objective.finish(None, lambda: pytest.fail("no vectors are asked for")) is None
    assert objective.begin(None, None) is None
    assert objective.resolve(list) is objective
    with pytest.raises(NotImplementedError):
        objective.outputs(None, None)
    with pytest.raises(NotImplementedError):
        objective.head_learning_rate_at(32)


# Values


def value_model(family: str) -> Any:
    return small_model(family, Ending("classes", ("value",), "regression"))


def test_a_head_without_a_bias_starts_scaled_and_values_far_from_0_are_refused() -> None:
    model = value_model("llama")
    before = model.score.weight.detach().clone()
    objective_of("regression", mean=25.0, spread=2.5).begin(model, Base())  # exactly ten spreads away
    torch.testing.assert_close(model.score.weight.detach(), 2.5 * before)
    for mean in (25.1, -25.1):
        with pytest.raises(UserError, match=rf"the values lie around {mean} and differ by 2.5, .* Subtract {mean}"):
            objective_of("regression", mean=mean, spread=2.5).begin(value_model("llama"), Base())
    objective_of("regression", mean=1e6, spread=2.5).begin(value_model("bert"), Base())


@pytest.mark.parametrize("values", [{}, {"mean": 0.0, "spread": 1.0}])
def test_a_head_over_values_around_0_starts_there(values: dict[str, float]) -> None:
    model = value_model("bert")
    before = model.classifier.weight.detach().clone()
    objective = objective_of("regression", **values)
    objective.begin(model, Base())
    assert model.classifier.bias.tolist() == [0.0]
    torch.testing.assert_close(model.classifier.weight.detach(), before)
    assert objective.output_scale == 1.0


def test_a_body_with_a_deep_head_starts_its_last_layer_alone() -> None:
    model = value_model("roberta")
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    objective_of("regression", mean=-3.0, spread=0.25).begin(model, Base())
    for name, each in model.named_parameters():
        wanted = before[name] * (0.25 if name == "classifier.out_proj.weight" else 1.0)
        wanted = torch.full_like(wanted, -3.0) if name == "classifier.out_proj.bias" else wanted
        torch.testing.assert_close(each.detach(), wanted, msg=name)


# Pairs


def pairs(texts: list[list[list[int]]]) -> Any:
    ends = [(np.cumsum([len(part) for part in row]) - 1).tolist() for row in texts]
    return batch_of([list(chain(*row)) for row in texts], ends, [[] for _ in texts])


A, P, B, Q, C, R, N = [5], [6, 7], [8, 9], [10], [11, 12], [13], [14, 15]


def test_anchors_documents_and_right_ones_are_told_apart_in_a_batch() -> None:
    anchors, documents, right = roles(pairs([[A, P], [B, Q, N], [C, R]]))
    assert anchors.tolist() == [0, 2, 5]
    assert documents.tolist() == [1, 3, 4, 6]
    assert right.tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("rows", "also"),
    [
        pytest.param([[A, P], [B, Q]], [[1, 0], [0, 1]], id="all texts differ"),
        pytest.param([[A, P], [B, P]], [[1, 1], [1, 1]], id="one positive twice"),
        pytest.param([[A, P], [A, Q]], [[1, 1], [1, 1]], id="one question twice"),
        pytest.param(
            [[A, P, N], [A, Q], [C, R]], [[1, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 1]], id="negatives stay wrong"
        ),
        pytest.param([[A, P], [B, Q, P]], [[1, 0, 1], [0, 1, 0]], id="a positive that is another's negative"),
        pytest.param([[A, P], [P, Q]], [[1, 0], [0, 1]], id="a positive that is another's question"),
    ],
)
def test_what_is_right_for_a_row_is_never_a_wrong_answer_of_it(
    rows: list[list[list[int]]], also: list[list[int]]
) -> None:
    batch = pairs(rows)
    anchors, documents, right = roles(batch)
    assert _also_right(batch, anchors, documents, right).int().tolist() == also
    objective = objective_of("embedding", temperature=0.5)
    model = small_model("bert", objective.ending)
    vectors = objective.outputs(model, batch)
    scores = vectors[anchors] @ vectors[documents].T / 0.5
    for row, loss in enumerate(objective.losses(model, batch)):
        wrong = [n for n in range(len(documents)) if not also[row][n]]
        kept = torch.stack([scores[row, right[row]], *(scores[row, n] for n in wrong)])
        torch.testing.assert_close(loss, torch.logsumexp(kept, 0) - kept[0])


# Few examples


def test_one_row_alone_has_no_loss_and_two_of_one_class_none_that_can_fall() -> None:
    objective = objective_of("few_shot", labels=NAMES)
    model = small_model("bert", objective.ending).requires_grad_(True)
    alone = batch_of([ROWS[0]], told=[[1.0]])
    assert objective.losses(model, alone).tolist() == [0.0]
    objective.loss(model, alone).backward()
    assert all(each.grad is None or each.grad.abs().max() == 0 for each in model.parameters())
    two = objective.losses(model, batch_of(ROWS[:2], told=[[1.0], [1.0]]))
    torch.testing.assert_close(two, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def regression_rows(classes: int, rows: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    told = np.arange(rows) % classes
    centers = generator.normal(size=(classes, 6))
    return generator.normal(size=(rows, 6)) + apart * centers[told], told


@pytest.mark.parametrize(
    ("rows", "apart", "classes", "strength"),
    [(9, 0.3, 3, 0.1), (12, 0.3, 2, 1.0), (12, 1.0, 3, 10.0), (9, 2.0, 3, 100.0), (24, 0.3, 2, 1.0)],
)
def test_the_heads_strength_is_the_one_that_scikit_learns_search_takes(
    rows: int, apart: float, classes: int, strength: float
) -> None:
    points, told = regression_rows(classes, rows, apart)
    folds = StratifiedKFold(min(4, rows // classes), shuffle=True, random_state=0)
    grid = {"C": [0.1, 1.0, 10.0, 100.0]}
    search = GridSearchCV(LogisticRegression(max_iter=1000), grid, scoring="neg_log_loss", cv=folds).fit(points, told)
    assert search.best_params_ == {"C": strength}
    head = fitted_head(points, told, classes)
    said = torch.softmax(head(torch.tensor(points, dtype=torch.float32)), -1).detach().numpy()
    np.testing.assert_allclose(said, search.predict_proba(points), atol=2e-5)


@pytest.mark.parametrize("lacking", [0, 1, 2])
@pytest.mark.parametrize("classes", [3, 4])
def test_a_class_without_rows_keeps_its_place_and_has_no_chance(classes: int, lacking: int) -> None:
    points, told = regression_rows(classes, 40, 1.0)
    kept = told != lacking
    head = fitted_head(points[kept], told[kept], classes)
    said = torch.softmax(head(torch.tensor(points, dtype=torch.float32)), -1).detach().numpy()
    assert said.shape == (40, classes)
    assert said[:, lacking].max() < 1e-30
    present = [each for each in range(classes) if each != lacking]
    fits = [
        LogisticRegression(C=c, max_iter=1000).fit(points[kept], told[kept]).predict_proba(points)
        for c in (0.1, 1.0, 10.0, 100.0)
    ]
    assert min(np.abs(said[:, present] - each).max() for each in fits) < 2e-5


def test_a_class_of_one_row_is_fitted_with_strength_1() -> None:
    points, told = regression_rows(2, 9, 1.0)
    told[:] = 0
    told[4] = 1
    expected = LogisticRegression(C=1.0, max_iter=1000).fit(points, told).predict_proba(points)
    said = torch.softmax(fitted_head(points, told, 2)(torch.tensor(points, dtype=torch.float32)), -1)
    np.testing.assert_allclose(said.detach().numpy(), expected, atol=1e-5)


def test_few_examples_finish_with_a_head_over_their_labels_and_say_its_chances() -> None:
    objective = objective_of("few_shot", labels=NAMES)
    points, told = regression_rows(3, 30, 2.0)
    head = objective.finish(None, lambda: (points, told[:, None].astype(np.float32)))
    expected = fitted_head(points, told, 3)
    torch.testing.assert_close(head.weight, expected.weight)
    torch.testing.assert_close(head.bias, expected.bias)
    model = small_model("bert", objective.ending, dtype=torch.float32)
    batch = batch_of(told=[[0.0]] * 4)
    own = torch.nn.Linear(32, 3)
    vectors = objective.outputs(model, batch)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(objective.outputs(model, batch, own), torch.softmax(own(vectors), -1))


# A teacher


def test_a_teacher_that_does_not_write_is_refused(tmp_path: Any) -> None:
    model = small_model("bert", Ending("classes", tuple(NAMES)), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"objective.teacher: {tmp_path} writes no text. Name a model that does."):
        objective_of("distillation", teacher=str(tmp_path)).begin(small_model(), Base())


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_a_teachers_loss_is_hintons_whatever_a_chunk_holds_and_however_wide_the_heads(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.models.forward.CHUNK", chunk)
    student, teacher = small_model(), small_model("gpt2", vocab_size=70)
    objective = objective_of("distillation", teacher="t", temperature=2.5, label_share=0.3)
    objective._teacher = teacher
    said, wanted = (torch.cat([each[:-1, :64] for each in logits_alone(model)]) for model in (student, teacher))
    labels = torch.tensor([token for ids in ROWS for token in ids[1:]])
    own = functional.cross_entropy(said, labels, reduction="sum")
    p, q = torch.log_softmax(wanted / 2.5, -1), torch.log_softmax(said / 2.5, -1)
    expected = 0.7 * 2.5**2 * (p.exp() * (p - q)).sum() + 0.3 * own
    torch.testing.assert_close(objective.loss(student.requires_grad_(True), batch_of()), expected, rtol=1e-6, atol=1e-6)


def test_every_objective_is_in_the_registry_under_its_kind() -> None:
    for kind in OBJECTIVES:
        found_class = named_kind(OBJECTIVES, kind)
        assert issubclass(found_class, ObjectiveConfig)
        assert found_class.model_fields["kind"].default == kind
