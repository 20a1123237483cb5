"""The results of `preference_speed.py`: what a run's files say, and the table."""

import json
from pathlib import Path
from typing import Any

from generation_report import written
from peers.measured import GRPO_GROUP, GRPO_PROMPTS, GRPO_TOKENS
from train_speed_report import WARM_UP

Result = dict[str, Any]
LABELS = {"reference": "Llama, 125 M random weights", "smollm2": "SmolLM2-135M-Instruct"}

PAIR_STEPS = (
    " Steps have at most 2,048 tokens, and the same rows for both. The reference of the pairs counts, whether computed "
    "before or in the steps. Tokens are those of prompt and both answers, the prompt once."
)
GRPO_STEPS = (
    f" A step of GRPO samples {GRPO_GROUP} answers of at most {GRPO_TOKENS} tokens to each of {GRPO_PROMPTS} prompts, "
    "scores them and learns; all of that is timed, answers count as pairs, and tokens are those of prompts and answers."
)


def pairs_per_second(results: list[Result]) -> float:
    """Pairs per second over the steps after warmup, with the reference of these pairs if it was computed before."""
    pairs = seconds = 0.0
    for result in results:
        steps = result["steps"][WARM_UP:]
        rows = len(steps) * result["pairs_per_step"]
        before = sum(batch[0] for batch in result["before"])
        pairs += rows
        seconds += sum(step["seconds"] for step in steps)
        seconds += rows * sum(batch[1] for batch in result["before"]) / before if before else 0.0
    return pairs / seconds


def tokens_per_second(result: Result) -> float:
    """Tokens per second; a prompt counts once for both answers, and padding does not count."""
    steps = result["steps"][WARM_UP:]
    tokens = sum(step["tokens"] for step in steps)
    return float(tokens / (len(steps) * result["pairs_per_step"]) * pairs_per_second([result]))


def summarize(run: Path, raw: Path) -> dict[str, Any]:
    """All figures of a run.

    Args:
        run: its directory.
        raw: where its works are.
    """
    parameters = json.loads((run / "run.json").read_text())
    plans = {model: json.loads((raw / work / "plan.json").read_text()) for model, work in parameters["works"].items()}
    failed: dict[str, str] = {}
    settings: list[dict[str, Any]] = []
    for model in parameters["works"]:
        groups: dict[str, list[Result]] = {}
        for file in sorted((run / model).glob("*-[0-9].json")):
            result = json.loads(file.read_text())
            if "failed" in result:
                lines = result["failed"].splitlines()
                failed[f"{model} {result['name']}"] = lines[0 if lines[0].startswith("killed") else -1]
            else:
                groups.setdefault(result["name"], []).append(result)
        settings += [_setting(model, results) for results in groups.values()]
    for setting in settings:
        ours = next((each for each in settings if _cell(each) == _cell(setting) and each["peer"] == "ours"), None)
        if ours is not None and setting["peer"] != "ours":
            pairs = zip(ours["pairs_per_second"], setting["pairs_per_second"], strict=False)
            setting["ours_times_as_fast"] = [mine / other for mine, other in pairs]
            setting["ours_part_of_memory"] = max(ours["peak_rss_bytes"]) / max(setting["peak_rss_bytes"])
    return {
        "date": parameters["date"],
        "precision": parameters["precision"],
        "steps": parameters["steps"],
        "warm_up": WARM_UP,
        "rounds": parameters["rounds"],
        "plans": {
            model: {key: plan[key] for key in ("data_set", "rows", "rows_in_the_file", "rows_per_step")}
            | {"mean_tokens": [sum(part[each] for part in plan["parts"]) / plan["rows"] for each in range(3)]}
            for model, plan in plans.items()
        },
        "limits": {
            model: parameters["products_per_second"][parameters["precision"]] / products_per_pair(raw / work)
            for model, work in (parameters["works"].items() if parameters["products_per_second"] else ())
        },
        "settings": settings,
        "largest_difference_of_losses": _largest_difference(settings),
        "failed": failed,
    }


def products_per_pair(work: Path) -> float:
    """Floating-point operations of the matrix products that no trainer of DPO with LoRA can leave out of a pair: each
    token through the blocks, and each token of an answer through the output layer, in the reference, forwards and
    backwards; without attention's and the adapter's.

    Args:
        work: of the model.
    """
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(work / "model"))
    head = model.get_output_embeddings()
    blocks = sum(each.weight.numel() for each in model.modules() if isinstance(each, nn.Linear) and each is not head)
    parts = json.loads((work / "plan.json").read_text())["parts"]
    tokens = sum(blocks * sum(part) + head.weight.numel() * sum(part[1:]) for part in parts) / len(parts)
    return float(3 * 2 * tokens)


def _setting(model: str, results: list[Result]) -> dict[str, Any]:
    """One setting's figures, a value for each round."""
    kept = ("name", "label", "peer", "objective", "description", "versions")
    return {
        "model": model,
        **{key: results[0][key] for key in kept},
        "pairs_per_second": [pairs_per_second([result]) for result in results],
        "pairs_per_second_of_steps": [pairs_per_second([{**result, "before": []}]) for result in results],
        "tokens_per_second": [tokens_per_second(result) for result in results],
        "peak_rss_bytes": [result["peak_rss_bytes"] for result in results],
        "losses": [step["loss"] for step in results[0]["steps"]],
    }


def _cell(setting: dict[str, Any]) -> tuple[str, str]:
    return setting["model"], setting["objective"]


def _largest_difference(settings: list[dict[str, Any]]) -> float | None:
    """Between the losses of any step of the settings that are compared."""
    checked = [each["losses"] for each in settings if each["objective"] == "check"]
    return max(map(abs, (a - b for a, b in zip(*checked, strict=True)))) if len(checked) == 2 else None


def table(found: dict[str, Any]) -> str:
    """The results as a page for the docs."""
    computer, precision = found.get("machine"), found["precision"]
    objectives = {each["objective"] for each in found["settings"]}
    lines = [
        f"LoRA of rank 16 and alpha 32 on all linear layers, AdamW at a constant 1e-4, {precision}. "
        + " ".join(_about(model, plan, objectives) for model, plan in found["plans"].items())
        + f" Measured on {found['date']} in one run"
        + (f", settings in turn, on {_machine(computer)}" if computer else "")
        + f": {found['steps'] - found['warm_up']} steps after {found['warm_up']} of warmup in each of up to "
        f"{found['rounds']} rounds, with 95 % intervals over the rounds."
        + ("" if objectives == {"grpo"} else PAIR_STEPS)
        + (GRPO_STEPS if "grpo" in objectives else ""),
        "",
        "| | | pairs/s | tokens/s | Tunesmith is | peak memory | Tunesmith's part |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    measured = [each for each in found["settings"] if each["objective"] != "check"]
    order = sorted({_cell(each) for each in measured})
    for setting in sorted(measured, key=lambda each: (order.index(_cell(each)), -max(each["pairs_per_second"]))):
        times = written(setting["ours_times_as_fast"], "{:.2f}") + " ×" if "ours_times_as_fast" in setting else ""
        part = f"{setting['ours_part_of_memory']:.2f} ×" if "ours_part_of_memory" in setting else ""
        what = setting["label"] if setting["peer"] == "ours" else f"{setting['label']}, {setting['description']}"
        lines.append(
            f"| {setting['objective']}, {LABELS[setting['model']]} | {what} | "
            f"{written(setting['pairs_per_second'], '{:.2f}')} | {written(setting['tokens_per_second'])} | {times} | "
            f"{max(setting['peak_rss_bytes']) / 1e9:.2f} GB | {part} |"
        )
    lines += [f"| {name} | did not run: {why} | | | | | |" for name, why in found["failed"].items()]
    lines += _limits(found)
    if (difference := found["largest_difference_of_losses"]) is not None:
        checked = next(each for each in found["settings"] if each["objective"] == "check")
        lines += [
            "",
            f"From the same adapter in fp32 ({LABELS[checked['model']]}), the losses of DPO's {len(checked['losses'])} "
            f"steps differ by at most {difference:.1e}; the first one is {checked['losses'][0]:.4f}, that is ln 2.",
        ]
    versions = {each["label"]: each["versions"] for each in found["settings"]}
    lines += [""] + [
        f"- {label}: {', '.join(f'{name} {version}' for name, version in own.items() if version)}"
        for label, own in versions.items()
    ]
    return "\n".join(lines) + "\n"


def _limits(found: dict[str, Any]) -> list[str]:
    """How near Tunesmith's DPO is to what the machine's matrix products allow."""
    own = [each for each in found["settings"] if (each["peer"], each["objective"]) == ("ours", "dpo")]
    if not own:
        return []
    rates = ", ".join(f"{found['limits'][each['model']]:.2f} pairs/s ({LABELS[each['model']]})" for each in own)
    shares = (f"{100 * max(each['pairs_per_second']) / found['limits'][each['model']]:.0f} %" for each in own)
    return [
        "",
        "The matrix products that no trainer can leave out of a pair (in the reference, forwards and backwards; "
        f"without attention's) take all of the machine's time at {rates}, at the rate of large products. "
        f"Tunesmith has {' and '.join(shares)} of that.",
    ]


def _about(model: str, plan: dict[str, Any], objectives: set[str]) -> str:
    prompt, chosen, rejected = plan["mean_tokens"]
    if objectives == {"grpo"}:
        return f"{LABELS[model]}: prompts of {plan['data_set']}, of {prompt:.0f} tokens on average."
    return (
        f"{LABELS[model]}: {plan['rows']} pairs of {plan['data_set']}, {plan['rows_per_step']} per step, with "
        f"{prompt:.0f} + {chosen:.0f} and {prompt:.0f} + {rejected:.0f} tokens on average."
    )


def _machine(computer: dict[str, Any]) -> str:
    instructions = ", ".join(computer["instructions"][:3])
    memory = computer["memory_bytes"] / 2**30
    return f"{computer['cores']} cores ({computer['processor']}; {instructions}), {memory:.0f} GiB"
