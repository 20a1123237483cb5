"""What preferences teach a small model: DPO and KTO on real pairs, a reward model on a known rule, and rewards.

    python benchmarks/preference_quality.py               # SmolLM2-135M-Instruct, five seeds

Pairs: LLaMA-Factory's demo of preferences (`dpo_en_demo`) and Anthropic's harmless pairs (Bai et al. 2022), both from
`shared/data`; only short texts. Each run is compared with its base on held-out pairs: the share in
which the better answer is likelier, summed and per token, and the loss on general text (WikiText-2's test part). Beside
DPO: the chosen answers as plain examples (`instruction`), and KTO on the same answers as thumbs.

The rule: answers to small requests are scored by how polite and how short they are; a reward model learns it from
pairs, and is measured on held-out pairs and by its rank correlation with the rule.

Sums, and the animals among some words (`preference_checks.py`): GRPO with a check of the answer, beside the same number
of samples as best-of-n (once) and as expert iteration (`best_of_n`, phase by phase), and beside choosing the right one
of several answers.

The pipeline (`preference_pipeline.py`): examples, a reward model of the rule, and policies that it trains, one recipe.
Writes results/preference_quality.{jsonl,md}; finished trials are not repeated.
"""

import argparse
import json
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from preference_checks import TASKS, checked_table, checked_trial
from preference_pipeline import ASKED, PHASES, pipeline_table, pipeline_trial
from preference_pipeline import PROMPTS as PIPELINE_PROMPTS
from stored_result import stored_trials
from train_speed_report import machine

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TUNESMITH_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "preference_quality.jsonl"
BASE = "smollm2-135m-instruct"
SEEDS = 5
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for a 95 % interval, by the number of seeds."""


EPOCHS, RATE = 1, 5e-4
"""Of the runs on real pairs. The default rate is meant for thousands of pairs."""


@dataclass(frozen=True)
class Source:
    """Real pairs.

    Attributes:
        file: in `shared/data`.
        longest: tokens of a prompt and a completion; longer pairs are left out, so that a trial takes minutes.
        train: pairs to train on, at most.
        held_out: pairs to measure.
    """

    file: str
    longest: int
    train: int
    held_out: int


SOURCES = {
    "demo pairs": Source("formats/dpo_en_demo.json", 512, 60, 37),
    "harmless pairs": Source("hh_harmless/pairs.jsonl", 256, 160, 150),
    "more harmless pairs": Source("hh_harmless/pairs.jsonl", 256, 680, 400),
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"kind": "dpo", "beta": 0.1},
    "chosen answers as examples": {"kind": "instruction", "learn": "last"},
    "kto": {"kind": "kto", "beta": 0.1},
}
RULE = "the rule"


def pairs_of(source: Source) -> list[Any]:
    """The pairs whose texts are short enough, as examples, in the order of a fixed shuffle."""
    from tunesmith.config.base import Base
    from tunesmith.config.data import Data
    from tunesmith.data.examples import examples
    from tunesmith.data.render import Renderer
    from tunesmith.data.report import DataReport
    from tunesmith.data.template import UnusableError
    from tunesmith.models.load import load_tokenizer

    data = Data(train=[str(DATA / source.file)], max_malformed=0.1)
    renderer = Renderer(load_tokenizer(Base(path=BASE)))
    kept = []
    for example in examples(data, ("preference",), data.train, DataReport()):
        try:
            texts = renderer.completions(example).completions
        except UnusableError:
            continue
        if all(len(ids) <= source.longest for ids, _ in renderer.tokenize_many(texts)):
            kept.append(example)
    random.Random(0).shuffle(kept)
    return kept


def write_pairs(source: Source, directory: Path) -> None:
    """`train.jsonl` and `held_out.jsonl` as pairs, and the chosen answers as chats."""
    kept = pairs_of(source)
    train = kept[source.held_out : source.held_out + source.train]
    for name, part in (("held_out", kept[: source.held_out]), ("train", train)):
        pairs, chosen = [], []
        for example in part:
            best, worst = sorted(example.completions, key=lambda completion: -completion.score)
            prompt = list(example.messages)
            pairs.append({"prompt": prompt, "chosen": list(best.messages), "rejected": list(worst.messages)})
            chosen.append({"messages": [*prompt, *best.messages]})
        for kind, rows in (("pairs", pairs), ("chosen", chosen)):
            (directory / f"{kind}_{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


@cache
def log_probs_of_base(source: str) -> Any:
    """Of a source's held-out pairs, computed once."""
    with tempfile.TemporaryDirectory() as directory:
        write_pairs(SOURCES[source], Path(directory))
        return log_probs(BASE, Path(directory))


@cache
def general_loss_of(model: str) -> float:
    """On WikiText-2's test part."""
    from method_quality import general_loss

    return general_loss(model, "test.txt")


def log_probs(model: str, directory: Path) -> Any:
    """log p of the held-out pairs' answers (pairs, the better and the worse one, summed over its tokens and their
    mean), in fp32."""
    import torch

    import tunesmith
    from tunesmith.data.prepare import prepare
    from tunesmith.inference.model_reference import ModelReference
    from tunesmith.models.forward import evaluation_batches
    from tunesmith.models.load import load_tokenizer
    from tunesmith.objectives.preference import completion_log_probs

    recipe = tunesmith.Recipe.load(
        {
            "base": BASE,
            "data": {"train": str(directory / "pairs_held_out.jsonl"), "held_out": 0.0},
            "objective": {"kind": "dpo"},
        }
    )
    table = prepare(recipe, load_tokenizer(recipe.base)).train
    loaded = ModelReference.find(model).packing_model(torch.float32, torch.device("cpu"))
    found = torch.zeros(len(table), 2, 2)
    for items, batch in evaluation_batches(loaded, table, range(len(table)), 2048):
        with torch.no_grad():
            sums, tokens = completion_log_probs(loaded, batch)
        found[items] = torch.stack([sums, sums / tokens], -1).view(-1, 2, 2)
    return found.numpy()


def likelier(values: Any) -> dict[str, float]:
    """The share of pairs in which the better answer has the higher value, of those of `log_probs`."""
    summed, per_token = (values[:, 0] > values[:, 1]).mean(0).tolist()
    return {"sum": summed, "per_token": per_token}


def trial(source: str, name: str, seed: int) -> dict[str, Any]:
    """One run, and its base's and its own figures."""
    import tunesmith

    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        write_pairs(SOURCES[source], directory)
        kind = "chosen" if name.startswith("chosen") else "pairs"
        recipe = {
            "base": BASE,
            "data": {
                "train": str(directory / f"{kind}_train.jsonl"),
                "held_out": 0.0,  # the pairs are measured afterwards, once
                "max_length": SOURCES[source].longest,
            },
            "objective": OBJECTIVES[name],
            "method": {"kind": "lora", "rank": 16, "alpha": 32},
            "train": {"epochs": EPOCHS, "tokens_per_step": 4096, "learning_rate": RATE, "seed": seed},
        }
        run = tunesmith.train(recipe, directory / "run")
        before, after = log_probs_of_base(source), log_probs(str(run.directory), directory)
        return {
            "experiment": source,
            "name": name,
            "seed": seed,
            "machine": machine(),
            "accuracy_over_reference": likelier(after - before)["sum"],
            "base": {**likelier(before), "general": general_loss_of(BASE)},
            "tuned": {**likelier(after), "general": general_loss_of(str(run.directory))},
        }


POLITE = ("Thank you for asking.", "Happy to help!", "Of course.", "")
FILLER = ("There is more to say about that, but it would take long.", "It depends on many things.", "")


def rule(answer: str) -> float:
    """How good an answer is: a point for politeness, minus one for each ten words."""
    return float(any(words and words in answer for words in POLITE)) - len(answer.split()) / 10


def ruled_pairs(count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs of answers to sums that differ in politeness and length; the rule says which is better."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        a, b = draw.randint(1, 99), draw.randint(1, 99)
        answers = [
            " ".join(filter(None, (draw.choice(POLITE), f"{a} plus {b} is {a + b}.", *draw.choices(FILLER, k=2))))
            for _ in range(2)
        ]
        scores = [rule(answer) for answer in answers]
        if scores[0] != scores[1]:
            better = int(scores[1] > scores[0])
            rows.append(
                {"prompt": f"What is {a} plus {b}?", "chosen": answers[better], "rejected": answers[1 - better]}
            )
    return rows


def rule_trial(seed: int) -> dict[str, Any]:
    """A reward model of the rule."""
    from scipy.stats import spearmanr

    import tunesmith

    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        for name, rows in (("train", ruled_pairs(200, seed)), ("held_out", ruled_pairs(200, 1000 + seed))):
            (directory / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        recipe = {
            "base": BASE,
            "data": {"train": str(directory / "train.jsonl"), "held_out": [str(directory / "held_out.jsonl")]},
            "objective": {"kind": "reward"},
            "method": {"kind": "lora", "rank": 16, "alpha": 32},
            "train": {
                "epochs": 1,
                "tokens_per_step": 1024,
                "seed": seed,
                "evaluate_rows": 200,
                "evaluate_every": 10_000,
            },
        }
        run = tunesmith.train(recipe, directory / "run")
        last = [event for event in run.events() if event["event"] == "evaluation"][-1]
        held_out = ruled_pairs(200, 1000 + seed)
        rewards = tunesmith.load(run.directory).reward(
            [row["prompt"] for row in held_out],
            [row["chosen" if n % 2 else "rejected"] for n, row in enumerate(held_out)],
        )
        truth = [rule(row["chosen" if n % 2 else "rejected"]) for n, row in enumerate(held_out)]
        return {
            "experiment": RULE,
            "name": "reward model",
            "seed": seed,
            "machine": machine(),
            "accuracy": last["accuracy"],
            "rank_correlation": float(spearmanr(rewards, truth).statistic),
        }


def check_trial(task: str, seed: int) -> dict[str, Any]:
    """GRPO and best-of-n on a task whose answers can be checked."""
    return {
        "experiment": task, "name": "grpo", "seed": seed, "machine": machine(),
        **checked_trial(BASE, TASKS[task], seed),
    }  # fmt: skip


PIPELINE = "the pipeline"


def votes_trial(seed: int) -> dict[str, Any]:
    """From the rule's choices to a policy: all stages of one recipe."""
    draw = random.Random(10_000 + seed)
    count = PHASES * PIPELINE_PROMPTS + ASKED
    prompts = [f"What is {draw.randint(1, 99)} plus {draw.randint(1, 99)}?" for _ in range(count)]
    found = pipeline_trial(BASE, seed, ruled_pairs, rule, prompts)
    return {"experiment": PIPELINE, "name": "stages", "seed": seed, "machine": machine(), **found}


def table(trials: list[dict[str, Any]]) -> str:
    """Markdown: means and 95 % intervals over the seeds."""
    lines = [
        "| pairs | trained on | likelier: base | tuned | per token: base | tuned | over the reference | general text: "
        "base | tuned |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for source in SOURCES:
        for name in OBJECTIVES:
            own = [each for each in trials if (each["experiment"], each["name"]) == (source, name)]
            if not own:
                continue
            cells = [
                _over([each[side][key] for each in own], 100, "%")
                for key in ("sum", "per_token")
                for side in ("base", "tuned")
            ]
            known = [each["accuracy_over_reference"] for each in own if each["accuracy_over_reference"] is not None]
            cells.append(_over(known, 100, "%") if known and OBJECTIVES[name]["kind"] in ("dpo", "kto") else "")
            cells += [_over([each[side]["general"] for each in own], 1, "") for side in ("base", "tuned")]
            lines.append(f"| {source} | {name} | {' | '.join(cells)} |")
    ruled = [each for each in trials if each["experiment"] == RULE]
    if ruled:
        accuracy, correlation = (
            _over([each[key] for each in ruled], scale, unit)
            for key, scale, unit in (("accuracy", 100, "%"), ("rank_correlation", 1, ""))
        )
        lines += [
            "",
            f"A reward model of the rule: {accuracy} of held-out pairs right; rank correlation with it {correlation}.",
        ]
    for task in TASKS:
        checked = [each for each in trials if each["experiment"] == task]
        if checked:
            lines += checked_table(task, checked, _over)
    pipelines = [each for each in trials if each["experiment"] == PIPELINE]
    if pipelines:
        lines += pipeline_table(pipelines, _over)
    counts = {
        name: len({each["seed"] for each in trials if each["experiment"] == name})
        for name in (*SOURCES, RULE, *TASKS, PIPELINE)
    }
    if trials:
        seeds = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        machines = dict.fromkeys(
            f"{about['cores']} cores of an {about['processor']} with {about['instructions'][0]}"
            for about in (each["machine"] for each in trials)
        )
        lines += ["", f"Seeds: {seeds}; 95 % intervals over them. On {' and on '.join(machines)}."]
    return "\n".join(lines) + "\n"


def _over(values: list[float], scale: int, unit: str) -> str:
    """The mean with its 95 % interval by Student's t."""
    digits = 0 if scale == 100 else 3
    center = f"{scale * mean(values):.{digits}f}"
    if len(values) < 2 or len(set(values)) == 1:
        return f"{center}{unit}"
    half = T_95[len(values)] * stdev(values) / len(values) ** 0.5
    return f"{center} ± {scale * half:.{digits}f}{unit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--only", nargs="+", choices=[*SOURCES, RULE, *TASKS, PIPELINE], help="these experiments")
    options = parser.parse_args()
    finished = {(each["experiment"], each["name"], each["seed"]) for each in stored_trials(RESULTS)}
    for seed in range(options.seeds):
        pairs = [(source, name) for name in options.objectives for source in SOURCES]
        checked = [(task, "grpo") for task in TASKS]
        for experiment, name in [*pairs, (RULE, "reward model"), *checked, (PIPELINE, "stages")]:
            if (experiment, name, seed) in finished or (options.only and experiment not in options.only):
                continue
            own: dict[str, Callable[[int], dict[str, Any]]] = {RULE: rule_trial, PIPELINE: votes_trial}
            own |= {task: partial(check_trial, task) for task in TASKS}
            result = own[experiment](seed) if experiment in own else trial(experiment, name, seed)
            with RESULTS.open("a", encoding="utf-8") as out:
                out.write(json.dumps(result) + "\n")
            RESULTS.with_suffix(".md").write_text(table(stored_trials(RESULTS)), encoding="utf-8")
            print(f"{experiment}, {name}, seed {seed}", flush=True)


if __name__ == "__main__":
    main()
