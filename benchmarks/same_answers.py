"""Whether a run that is exported to GGUF gives the answers of `tunesmith generate`, and where it does not, why.

    python benchmarks/same_answers.py [--run RUN]    # fifteen minutes; writes results/same_answers.json, .md

The demo's task on SmolLM2-135M-Instruct: STEPS steps of LoRA, then greedy answers to 20 held-out questions by Tunesmith
and by llama.cpp (xllamacpp) from each kind of file, with the cache and the attention that it has by default, and as
exactly as it can. The weights of the q8_0 file are also computed in fp32, by both: what differs there is their rounding
alone; what q8_0 itself adds is that llama.cpp rounds the inputs of each product to eight bits, too. Where two answers
part, the gap is how much more likely Tunesmith's token is by Tunesmith's log-probabilities, in nats.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stored_result import store

RESULTS = Path(__file__).parent / "results" / "same_answers.json"
BASE = "smollm2-135m-instruct"
STEPS, PROMPTS, LONGEST = 90, 20, 150
TOP = 20
"""How many of the most likely tokens are kept with each token of an answer."""

CLOSE = 0.1
"""Nats between the two most likely tokens; in smaller gaps, rounding can decide."""

Answer = dict[str, Any]
"""`tokens`, and `text`; of Tunesmith's also `tops`, the most likely tokens at each place."""


@dataclass(frozen=True)
class Reading:
    """A way to read a file.

    Attributes:
        file: which.
        cache: the dtype of llama.cpp's keys and values.
        flash: its attention.
    """

    file: str
    cache: str = "f16"
    flash: str = "auto"

    @property
    def label(self) -> str:
        name = "q8_0's weights in f32" if self.file == "dequantized" else self.file
        return f"llama.cpp, {name}" + (", as it comes" if self.flash == "auto" else "")


READINGS = (
    *(Reading(file) for file in ("f16", "q8_0")),
    *(Reading(file, "f32", "off") for file in ("f32", "f16", "q8_0", "dequantized")),
)


def trained(directory: Path) -> Path:
    """Train the demo's task. Returns the run."""
    from tunesmith.cli.demo import MOST_ROWS
    from tunesmith.demo.prose import write_prose
    from tunesmith.demo.recipe import write_recipe
    from tunesmith.demo.tools import write_rows
    from tunesmith.training.stages import train

    write_rows(directory, most_held_out=PROMPTS, most_train=MOST_ROWS)
    write_prose(directory)
    recipe = write_recipe(directory, BASE, [f"train.steps={STEPS}"])
    return train(recipe, directory / "run").directory


def rows_of(run: Path) -> list[dict[str, str]]:
    """The run's held-out rows."""
    import yaml

    (file,) = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["data"]["held_out"]
    lines = (run / file).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines][:PROMPTS]


def by_tunesmith(name: Path, rows: Sequence[dict[str, str]]) -> list[Answer]:
    import tunesmith

    model = tunesmith.load(name, precision="fp32")
    stops = model.generator.stops
    answers = model.generate([row["question"] for row in rows], max_new_tokens=LONGEST, top_logprobs=TOP)
    return [
        {
            "tokens": [token for token in each.tokens if token not in stops],
            "text": each.text.strip(),
            "tops": [dict(tops) for tops in each.top_logprobs],
        }
        for each in answers
    ]


def in_fp32(file: Path, run: Path, directory: Path) -> Path:
    """The weights of a GGUF file as a model directory in fp32, with the run's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import tunesmith
    from tunesmith.models.bases import get_base

    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(get_base(BASE)), dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(directory)
    tunesmith.load(run).tokenizer.save_pretrained(directory)
    return directory


def by_llama_cpp(file: Path, reading: Reading, prompts: Sequence[Sequence[int]]) -> list[Answer]:
    """In a process of its own, since a server of xllamacpp may never end."""
    command = [sys.executable, __file__, "--one", str(file), reading.cache, reading.flash]
    done = subprocess.run(command, input=json.dumps(prompts), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    answers: list[Answer] = json.loads(done.stdout.splitlines()[-1])
    return answers


def one(file: str, cache: str, flash: str) -> None:
    """Answer the prompts on the standard input with llama.cpp."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 1024, 1, -1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    kind = {"f16": xllamacpp.ggml_type.GGML_TYPE_F16, "f32": xllamacpp.ggml_type.GGML_TYPE_F32}[cache]
    params.cache_type_k = params.cache_type_v = kind
    if flash == "off":
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    settings = {"n_predict": LONGEST, "temperature": 0.0, "cache_prompt": False, "return_tokens": True}
    answers = []
    for prompt in json.load(sys.stdin):
        body = json.dumps({"prompt": prompt, **settings}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/completion", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            found = json.load(reply)
        answers.append({"tokens": found["tokens"], "text": found["content"].strip()})
    print(json.dumps(answers), flush=True)
    os._exit(0)  # the server's destructor may never return


def gaps(expected: Sequence[Answer], found: Sequence[Answer]) -> list[float | None]:
    """For each answer that differs: the nats by which Tunesmith's own token is more likely than the other one, where
    they part; None if the other is not among the most likely ones."""
    parted = []
    for own, other in zip(expected, found, strict=True):
        if own["text"] == other["text"]:
            continue
        pairs = zip(own["tokens"], other["tokens"], strict=False)
        place = next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(own["tokens"]), len(other["tokens"])))
        tops = own["tops"][place]
        chosen = max(tops.values())
        instead = tops.get(other["tokens"][place]) if place < len(other["tokens"]) else sorted(tops.values())[-2]
        parted.append(None if instead is None else chosen - instead)
    return parted


def figures(expected: Sequence[Answer], found: Sequence[Answer], rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    """How many answers are the same, the gaps of the others, and the share that is exactly right with its interval."""
    from tunesmith.demo.tools import exactly_right
    from tunesmith.statistics.intervals import wilson

    right = sum(exactly_right(each["text"], row["answer"]) for each, row in zip(found, rows, strict=True))
    same = sum(own["text"] == other["text"] for own, other in zip(expected, found, strict=True))
    share = right / len(rows)
    return {"same": same, "gaps": gaps(expected, found), "right": share, "interval": wilson(share, len(rows))}


def close_places(answers: Sequence[Answer]) -> tuple[int, int]:
    """How many tokens the answers have, and at how many the second most likely one is within CLOSE."""
    tops = [sorted(each.values())[-2:] for answer in answers for each in answer["tops"]]
    return len(tops), sum(second > first - CLOSE for second, first in tops)


def table(found: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = [
        "| answers by | as the run's | gaps where they part, nats | as with q8_0's weights | exactly right |",
        "|---|---:|---|---:|---|",
    ]
    for label, each in found["figures"].items():
        rounded = found["as_rounded"].get(label)
        low, high = (f"{100 * end:.0f}" for end in each["interval"])
        cells = (
            label,
            f"{each['same']} of {found['prompts']}",
            _range([gap for gap in each["gaps"] if gap is not None]),
            "" if rounded is None else f"{rounded['same']} of {found['prompts']}",
            f"{each['right']:.0%} ({low} to {high})",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _range(gaps: Sequence[float]) -> str:
    return f"{min(gaps):.2f} to {max(gaps):.2f}" if gaps else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run of the demo's task that exists")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(*options.one)
        return
    import tunesmith
    from tunesmith.exporting.export import export

    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        run = options.run or trained(directory)
        rows = rows_of(run)
        model = tunesmith.load(run)
        prompts = [model.generator.ids(model.prompt([{"role": "user", "content": row["question"]}])) for row in rows]
        del model
        expected = by_tunesmith(run, rows)
        tokens, close = close_places(expected)
        print(f"{tokens} tokens, {close} with a second one within {CLOSE} nats", flush=True)
        found: dict[str, Any] = {"prompts": len(rows), "tokens": tokens, "close": close}
        found["figures"] = {"Tunesmith, the run": figures(expected, expected, rows)}
        files = {kind: directory / f"{kind}.gguf" for kind in ("f32", "f16", "q8_0", "dequantized")}
        for kind in ("f32", "f16", "q8_0"):
            export(str(run), files[kind], f"gguf:{kind}")
        weights = in_fp32(files["q8_0"], run, directory / "weights")
        export(str(weights), files["dequantized"], "gguf:f32")
        rounded = by_tunesmith(weights, rows)
        found["figures"]["Tunesmith, q8_0's weights in fp32"] = figures(expected, rounded, rows)
        found["as_rounded"] = {}
        for reading in READINGS:
            answers = by_llama_cpp(files[reading.file], reading, prompts)
            found["figures"][reading.label] = figures(expected, answers, rows)
            if reading.file in ("dequantized", "q8_0"):
                found["as_rounded"][reading.label] = figures(rounded, answers, rows)
            print(reading.label, found["figures"][reading.label], flush=True)
    store(RESULTS, found, table(found))


if __name__ == "__main__":
    main()
