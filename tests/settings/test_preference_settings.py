"""Every setting of the objectives for preferences, by its paper's formula on texts computed one by one."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bytewise import byte_tokenizer
from command import output_of
from completions import REFERENCE, SCORES, completions_batch, completions_table, log_probs_alone
from settings_coverage import shows
from small_models import batch_of, logits_alone, objective_of, small_model, stored_base
from torch import Tensor
from torch.nn.functional import logsigmoid

import tunesmith
from tunesmith.data.batch import collate
from tunesmith.data.example import Completion, Example, Source
from tunesmith.data.render import Renderer, joined
from tunesmith.data.template import UnusableError
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.heads.reward import RewardHead
from tunesmith.heads.sequence_classification import class_logits
from tunesmith.objectives.preference import completion_log_probs

PAIRS = [[(0, 1)], [(3, 2), (2, 4), (3, 4)], [(6, 5)]]
"""Of each row, the better and the worse completion, by index."""

TOKENS = [3, 2, 5, 3, 1, 2, 4]


def ratios(model: Any) -> Tensor:
    """log π − log ρ of each completion."""
    return log_probs_alone(model) - torch.tensor(REFERENCE, dtype=torch.float64)


def mean_of_pairs(value: Any, pairs: list[list[tuple[int, int]]] = PAIRS) -> float:
    """Σ over rows of the mean over the row's pairs of a function of better and worse."""
    with torch.no_grad():
        return sum(float(sum(value(better, worse) for better, worse in row)) / len(row) for row in pairs)


@shows("objective.dpo.beta", "objective.dpo.loss", "objective.dpo.label_smoothing")
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_dpo_is_its_formula_on_separate_texts(family: str) -> None:
    model = small_model(family)
    r = ratios(model)
    for options, formula in (
        ({"beta": 0.3}, lambda z: -logsigmoid(0.3 * z)),
        ({"beta": 0.3, "label_smoothing": 0.2}, lambda z: -0.8 * logsigmoid(0.3 * z) - 0.2 * logsigmoid(-0.3 * z)),
        ({"loss": "hinge", "beta": 2.0}, lambda z: torch.relu(1 - 2.0 * z)),
    ):
        loss = objective_of("dpo", **options).build().loss(model, completions_batch())
        expected = mean_of_pairs(lambda up, down, f=formula: f(r[up] - r[down]))
        exact = 1e-9 if family == "gpt2" else 1e-6  # the others' norms compute in fp32
        assert loss.item() == pytest.approx(expected, rel=exact), options


@shows("objective.dpo.target_margin")
def test_simpo_needs_no_reference_and_has_a_margin() -> None:
    model = small_model("gpt2")
    log_probs = log_probs_alone(model)
    loss = objective_of("dpo", loss="simpo", beta=2.0, target_margin=0.9).build()
    expected = mean_of_pairs(
        lambda up, down: -logsigmoid(2.0 * (log_probs[up] / TOKENS[up] - log_probs[down] / TOKENS[down]) - 0.9)
    )
    assert loss.loss(model, completions_batch()).item() == pytest.approx(expected, rel=1e-9)
    assert not loss.needs_reference


@shows("objective.dpo.sft_weight")
def test_the_better_completions_own_loss_is_added_with_its_weight() -> None:
    model = small_model("gpt2")
    log_probs = log_probs_alone(model)
    plain, mixed = (
        objective_of("dpo", **options).build().loss(model, completions_batch()).item()
        for options in ({}, {"sft_weight": 0.7})
    )
    assert mixed - plain == pytest.approx(mean_of_pairs(lambda up, down: -0.7 * log_probs[up] / TOKENS[up]), rel=1e-9)


@shows("objective.dpo.pairs", "objective.reward.pairs")
def test_the_pairs_of_a_ranking_are_all_or_the_best_and_the_worst() -> None:
    model = small_model("gpt2")
    r = ratios(model)
    best_and_worst = [[(0, 1)], [(3, 4)], [(6, 5)]]
    for pairs, expected in (("all", PAIRS), ("best_and_worst", best_and_worst)):
        loss = objective_of("dpo", pairs=pairs).build().loss(model, completions_batch())
        assert loss.item() == pytest.approx(
            mean_of_pairs(lambda up, down: -logsigmoid(0.1 * (r[up] - r[down])), expected)
        )
    model = small_model("gpt2", RewardHead())
    batch = completions_batch(with_targets=True)
    rewards = class_logits(model, batch)[:, 0]
    for pairs, expected in (("all", PAIRS), ("best_and_worst", best_and_worst)):
        loss = objective_of("reward", pairs=pairs).build().loss(model, batch)
        assert loss.item() == pytest.approx(
            mean_of_pairs(lambda up, down: -logsigmoid(rewards[up] - rewards[down]), expected)
        )


@shows("objective.listwise.beta")
def test_listwise_is_plackett_luce_on_separate_texts() -> None:
    model = small_model("gpt2")
    r = 0.4 * ratios(model)
    orders = [[0, 1], [3, 2, 4], [6, 5]]
    expected = sum(torch.logsumexp(r[order[k:]], 0) - r[order[k]] for order in orders for k in range(len(order)))
    loss = objective_of("listwise", beta=0.4).build().loss(model, completions_batch())
    assert loss.item() == pytest.approx(float(expected), rel=1e-9)


def kto_batch(objective: Any, labels: list[float]) -> Any:
    """Three rows of one completion each, as the objective arranges them, with a reference."""
    table = completions_table([[label] for label in labels], completions=[[[30, 12, 6]], [[22, 6]], [[14, 2, 9, 9]]])
    arranged: TokenTable = objective.arrange(table)
    batch = collate(arranged, range(3))
    assert batch.completions is not None
    count = len(batch.completions.scores)
    reference = -4.0 - torch.arange(count, dtype=torch.float64)
    return replace(batch, completions=replace(batch.completions, reference=reference))


@shows(
    "objective.kto.beta", "objective.kto.desirable_weight", "objective.kto.undesirable_weight", "objective.kto.baseline"
)
def test_kto_is_its_formula_with_each_baseline() -> None:
    model = small_model("gpt2")
    good = [True, False, True]
    for baseline in ("kl", "zero"):
        objective = objective_of("kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.6, baseline=baseline)
        batch = kto_batch(objective, [float(each) for each in good])
        assert batch.completions is not None
        r = completion_log_probs(model, batch)[0] - batch.completions.reference
        own = r[::2] if baseline == "kl" else r
        z = max(0.0, float(r[1::2].mean())) if baseline == "kl" else 0.0
        expected = sum(
            (1.5 * (1 - torch.sigmoid(0.3 * (value - z))) if is_good else 0.6 * (1 - torch.sigmoid(0.3 * (z - value))))
            for value, is_good in zip(own, good, strict=True)
        )
        assert objective.build().loss(model, batch).item() == pytest.approx(float(expected), rel=1e-9)


def test_ktos_baseline_is_of_each_prompt_with_the_next_rows_completion() -> None:
    table = objective_of("kto").arrange(
        completions_table([[1.0], [0.0], [1.0]], completions=[[[30, 12, 6]], [[22, 6]], [[14, 2, 9, 9]]])
    )
    assert [table[row][0].tolist() for row in range(3)] == [
        [5, 9, 13, 21, 30, 12, 6, 22, 6],
        [7, 8, 33, 22, 6, 14, 2, 9, 9],
        [41, 9, 9, 17, 60, 14, 2, 9, 9, 30, 12, 6],
    ]
    assert table.completions is not None
    assert [table.completions.of(row)[0] for row in range(3)] == [(4, 3, 2), (3, 2, 4), (5, 4, 3)]
    assert [math.isnan(score) for score in table.completions.scores] == [False, True] * 3


@shows("objective.reward.margin", "objective.reward.centering")
def test_a_reward_is_compared_with_margin_and_centering() -> None:
    model = small_model("gpt2", RewardHead())
    batch = completions_batch(with_targets=True)
    rewards = class_logits(model, batch)[:, 0]
    scores = [score for row in SCORES for score in row]
    loss = objective_of("reward", margin=0.5, centering=0.02).build()
    expected = mean_of_pairs(
        lambda up, down: (
            -logsigmoid(rewards[up] - rewards[down] - 0.5 * (scores[up] - scores[down]))
            + 0.02 * (rewards[up] + rewards[down]) ** 2
        )
    )
    assert loss.loss(model, batch).item() == pytest.approx(expected, rel=1e-9)
    plain = mean_of_pairs(lambda up, down: -logsigmoid(rewards[up] - rewards[down]))
    assert loss.losses(model, batch).sum().item() == pytest.approx(plain, rel=1e-9)


@shows("objective.reward.head_learning_rate")
def test_a_reward_heads_rate_is_as_set() -> None:
    assert objective_of("reward", head_learning_rate=0.3).head_learning_rate_at(64) == 0.3


def test_a_reward_is_read_at_the_end_of_the_answer() -> None:
    """The last token with loss, which ends the turn; what the template writes after it is not computed."""
    tokenizer = byte_tokenizer()
    answers = tuple(
        Completion(({"role": "assistant", "content": text},), score) for text, score in (("a", 1.0), ("bb", 0.0))
    )
    example = Example(Source("rows", 1), messages=({"role": "user", "content": "q"},), completions=answers)
    (rendering,) = objective_of("reward").render(Renderer(tokenizer), example)
    ids, mask, lengths = joined(Renderer(tokenizer).tokenize_many(rendering.completions), on_last_token=True)
    assert tokenizer.decode(ids[: lengths[0]]) == "<|im_start|>user\nq<|im_end|><|im_start|>assistant\n"
    assert ids[mask].tolist() == [tokenizer.convert_tokens_to_ids("<|im_end|>")] * 2
    assert tokenizer.decode(ids[lengths[0] : lengths[0] + lengths[1]]) == "a<|im_end|>"


@shows("tunesmith reward model", "tunesmith reward prompt", "tunesmith reward answers")
def test_the_reward_command_rates_each_answer_to_the_prompt(tmp_path: Path) -> None:
    base = stored_base(tmp_path / "base")
    rows = [{"prompt": f"q{n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = {
        "base": {"path": str(base)},
        "data": {"train": [str(tmp_path / "pairs.jsonl")], "held_out": 0},
        "objective": {"kind": "reward"},
        "method": {"kind": "full"},
        "train": {"steps": 2, "tokens_per_step": 128, "precision": "fp32"},
    }
    run = tunesmith.train(recipe, tmp_path / "run").directory
    lines = output_of("reward", run, "q1", "yes 1", "no").splitlines()
    assert lines == output_of("reward", run, "q1", given="yes 1\nno\n").splitlines()
    expected = tunesmith.load(run).reward(["q1", "q1"], ["yes 1", "no"])
    assert [(float(line.split("\t")[0]), line.split("\t")[1]) for line in lines] == [
        (pytest.approx(expected[0], abs=1e-3), "yes 1"),
        (pytest.approx(expected[1], abs=1e-3), "no"),
    ]
    assert output_of("reward", run, "q2", "no") != output_of("reward", run, "q1", "no")


@shows("objective.process_reward.head_learning_rate")
def test_a_process_reward_heads_rate_is_as_set() -> None:
    assert objective_of("process_reward", head_learning_rate=0.2).head_learning_rate_at(64) == 0.2


def graded(columns: dict[str, Any]) -> Example:
    turns = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
    return Example(Source("rows", 1), messages=turns, others=("a",), columns=columns)


@shows("objective.graded_reward.attributes", "objective.graded_reward.lowest", "objective.graded_reward.highest")
def test_grades_are_outputs_above_each_grade_of_the_attributes_and_range_that_are_set() -> None:
    rows = [graded({"helpful": 1, "brief": "3", "note": "x"}), graded({"helpful": 2, "brief": 2, "note": 1})]
    found = objective_of("graded_reward").resolve(lambda: iter(rows))
    assert found.head.labels == ("helpful > 1", "helpful > 2", "brief > 1", "brief > 2")
    chosen = objective_of("graded_reward", attributes=["brief"], lowest=0, highest=4).resolve(lambda: iter(rows))
    assert chosen.head.labels == tuple(f"brief > {grade}" for grade in range(4))
    assert chosen.render(Renderer(byte_tokenizer()), rows[0])[0].targets == (1.0, 1.0, 1.0, 0.0)
    assert chosen.head.grades([1.0, 0.5, 0.25, 0.0]) == {"brief": 1.75}
    with pytest.raises(UnusableError, match="its brief is 5, not a whole number from 0 to 4"):
        chosen.render(Renderer(byte_tokenizer()), graded({"brief": 5}))
    with pytest.raises(UserError, match="the rows have note"):
        objective_of("graded_reward").resolve(lambda: iter([graded({"note": "x"})]))


@shows("objective.graded_reward.head_learning_rate")
def test_graded_rewards_are_binary_outputs_with_a_rate_as_set() -> None:
    objective = objective_of("graded_reward", attributes=["x", "y"], lowest=0, highest=2, head_learning_rate=0.4)
    assert objective.head_learning_rate_at(64) == 0.4
    model = small_model("gpt2", objective.head)
    rows = [[5, 9, 13], [7, 8, 33, 11]]
    targets = [[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]]
    batch = batch_of(rows, targets=targets)
    logits = torch.stack(logits_alone(model, rows))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.tensor(targets, dtype=torch.float64), reduction="none"
    ).mean(-1)
    loss = objective.build()
    assert loss.losses(model, batch).tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    above = torch.sigmoid(logits)
    errors = [
        sum(abs(float((above[row, at : at + 2]).sum()) - sum(targets[row][at : at + 2])) for at in (0, 2)) / 2
        for row in range(2)
    ]
    assert loss.figures(model, batch)["grade_error"].tolist() == pytest.approx(errors, abs=1e-5)


@shows("tunesmith data convert files", "tunesmith data convert --to", "tunesmith data convert --output")
@shows("tunesmith data convert --pairs")
def test_feedback_is_converted_to_the_form_and_file_that_are_named(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completions": ["a", "b", "c"]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for to, options, count in (("pairs", (), 3), ("pairs", ("--pairs", "best_and_worst"), 1), ("rankings", (), 1)):
        target = tmp_path / f"{to}{count}.jsonl"
        out = output_of("data", "convert", tmp_path / "rows.jsonl", "--to", to, "--output", target, *options)
        assert f"{count} {to}, from 1 rows (ranking)" in out
        assert len(target.read_text(encoding="utf-8").splitlines()) == count
