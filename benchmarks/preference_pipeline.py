"""From votes to behavior in one recipe: examples, a reward model of people's choices, and four ways to train on it.

`preference_quality.py` runs it. The people are a known rule (`preference_quality.rule`), so that what a policy learned
can be measured by what was meant, and not only by the reward model. From the same weights, best of n, GRPO, PPO and
online DPO sample as many answers; then online DPO continues from GRPO's weights. A judge of the same small size is
measured apart: whether the base can rank answers at all.
"""

import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

PHASES, PROMPTS, GROUP, TOKENS = 8, 8, 8, 32
"""Of each way: phases, prompts of a phase, answers to each, and the most tokens of an answer."""

EXAMPLES, PAIRS, ASKED, SAMPLES, JUDGED = 128, 200, 48, 2, 40
"""Answers as examples, pairs of the people, held-out prompts, answers to each that are measured, and pairs judged."""

POLICY: dict[str, Any] = {
    "reward": "stage:preferences", "prompts": PROMPTS, "group_size": GROUP, "max_new_tokens": TOKENS,
    "max_kl": 100.0,  # never reached: it has the distance measured
}  # fmt: skip

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "best-of-n": ("task", {"kind": "best_of_n", **POLICY}),
    "ppo": ("task", {"kind": "ppo", **POLICY, "passes": 1, "kl_weight": 0.02}),
    "online-dpo": ("task", {"kind": "online_dpo", **POLICY}),
    "grpo": ("task", {"kind": "grpo", **POLICY, "beta": 0.02}),
    "grpo-then-online-dpo": ("grpo", {"kind": "online_dpo", **POLICY}),
}
"""The stages after the reward model: where each starts, and its objective."""

RATE = 3e-4
"""Of the policies. The default is meant for long runs."""


def recipe_of(base: str, directory: Path, seed: int) -> dict[str, Any]:
    """All stages.

    Args:
        base: of the task.
        directory: with the rows.
        seed: of the runs.
    """
    rows = {name: {"train": str(directory / f"{name}.jsonl"), "held_out": 0.0} for name in ("task", "pairs", "prompts")}
    few = {"seed": seed, "tokens_per_step": 1024, "evaluate_every": 10_000}
    policies = [
        {
            "name": name,
            "base": f"stage:{start}",
            "data": rows["prompts"],
            "objective": objective,
            "train": {"seed": seed, "steps": PHASES, "learning_rate": RATE, "evaluate_every": 10_000},
        }
        for name, (start, objective) in WAYS.items()
    ]
    return {
        "base": base,
        "method": {"kind": "lora", "rank": 16, "alpha": 32},
        "stages": [
            {"name": "task", "data": rows["task"], "objective": "instruction", "train": {**few, "epochs": 2.0}},
            {"name": "preferences", "data": rows["pairs"], "objective": "reward", "train": {**few, "epochs": 1.0}},
            *policies,
        ],
    }


def pipeline_trial(
    base: str,
    seed: int,
    pairs: Callable[[int, int], list[dict[str, Any]]],
    rule: Callable[[str], float],
    prompts: Sequence[str],
) -> dict[str, Any]:
    """One run of all stages, and the rule's score of what each stage's model writes.

    Args:
        base: of the task.
        seed: of the rows and the runs.
        pairs: makes a number of pairs from a seed.
        rule: the score of an answer.
        prompts: those of a policy's phases, and then those that are measured.

    Returns:
        The figures of each stage, by name.
    """
    import tunesmith

    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        voted = pairs(PAIRS, seed)
        draw = random.Random(seed)
        task = [
            {"question": row["prompt"], "answer": row[draw.choice(("chosen", "rejected"))]}
            for row in pairs(EXAMPLES, 500 + seed)
        ]
        trained = [{"prompt": prompt} for prompt in prompts[:-ASKED]]
        for name, rows in (("task", task), ("pairs", voted), ("prompts", trained)):
            (directory / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        started = time.perf_counter()
        last = tunesmith.train(recipe_of(base, directory, seed), directory / "run")
        seconds = time.perf_counter() - started
        stages = {path.name.partition("-")[2]: path for path in last.stages}
        reward = tunesmith.load(stages["preferences"])
        return {
            "seconds": seconds,
            "judge": {"agrees": agreement_of_judge(base, pairs(JUDGED, 2000 + seed))},
            **{
                name: {**written(stages[name], prompts[-ASKED:], rule, reward, seed), **distance(stages[name])}
                for name in ("task", *WAYS)
            },
        }


def written(run: Path, prompts: Sequence[str], rule: Callable[[str], float], reward: Any, seed: int) -> dict[str, Any]:
    """What a stage's model writes at temperature 1: the rule's score of it, the reward model's, and its length."""
    import tunesmith

    found = tunesmith.load(run).generate(list(prompts), max_new_tokens=TOKENS, temperature=1.0, n=SAMPLES, seed=seed)
    answers = [answer.text for answer in found]
    asked = [prompt for prompt in prompts for _ in range(SAMPLES)]
    return {
        "rule": mean(map(rule, answers)),
        "reward": float(mean(map(float, reward.reward(asked, answers)))),
        "words": mean(len(answer.split()) for answer in answers),
        "example": answers[0],
    }


def distance(run: Path) -> dict[str, float | None]:
    """Of the policy from where its stage started, in nats per token, in the last phase."""
    import tunesmith

    known = [event["kl"] for event in tunesmith.Run.open(run).events() if event["event"] == "step" and "kl" in event]
    return {"kl": known[-1] if known else None}


def agreement_of_judge(base: str, pairs: Sequence[dict[str, Any]]) -> float:
    """The share of pairs of which the base, as a judge, gives the better answer the higher score; a tie is a half."""
    from tunesmith.rewards.judge import JudgeReward

    judge = JudgeReward(model=base, rubric="The answer is polite, and it is short.")
    prompts = [row["prompt"] for row in pairs]
    better, worse = (judge(prompts, [row[side] for row in pairs]) for side in ("chosen", "rejected"))
    judge.close()
    known = [(up, down) for up, down in zip(better, worse, strict=True) if up is not None and down is not None]
    return mean(0.5 + 0.5 * ((up > down) - (up < down)) for up, down in known) if known else 0.5


def pipeline_table(trials: Sequence[dict[str, Any]], over: Callable[[list[float], int, str], str]) -> list[str]:
    """Lines of Markdown.

    Args:
        trials: of `pipeline_trial`, one for each seed.
        over: writes the mean of values, times a factor, with its interval and a unit.
    """
    lines = [
        "",
        "| stage | the rule's score | the reward model's | words | KL from its start, nats per token |",
        "|---|---|---|---|---|",
    ]
    for name in ("task", *WAYS):
        cells = [over([each[name][key] for each in trials], 1, "") for key in ("rule", "reward", "words")]
        known = [each[name]["kl"] for each in trials if each[name]["kl"] is not None]
        lines.append(f"| {name} | {' | '.join(cells)} | {over(known, 1, '') if known else ''} |")
    agrees = over([each["judge"]["agrees"] for each in trials], 100, "%")
    return [*lines, "", f"The base as a judge prefers the better one of {agrees} of the pairs; a tie counts as a half."]
