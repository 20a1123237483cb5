"""Tokens per second of answers with and without drafts by prompt look-up, on SmolLM2-135M-Instruct.

    tunesmith bases get smollm2-135m-instruct
    python benchmarks/draft_speed.py      # ten minutes; writes results/draft_speed.json and .md

Answers to requests that copy from their prompt, and to questions; one at a time, and sixteen at once. Both ways must
give the same tokens with the same log-probabilities. Time is the processor's, on one thread, which other processes
hardly change; the best of two rounds, in which both ways alternate.
"""

import time
from pathlib import Path
from typing import Any

import torch
from stored_result import store

from tunesmith.inference.generate import Generator
from tunesmith.inference.model import load
from tunesmith.inference.sampling import Sampling

RESULTS = Path(__file__).parent / "results" / "draft_speed.json"
BASE = "smollm2-135m-instruct"
ROUNDS = 2
AT_ONCE = 16
TEXT = (
    "The harbor office opens at seven on weekdays and at nine on Sundays. Boats longer than twelve meters need a "
    "permit from the harbor master, Ms. Ines Talbot, who can be reached at extension 4471. Mooring costs eighteen "
    "euros a night, water and power included. Dogs must be on a leash on all piers. The crane can lift boats of up to "
    "nine tons and has to be booked two days ahead."
)
CODE = """def read_rows(path, limit=None):
    rows = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            if limit is not None and len(rows) == limit:
                break
            rows.append(json.loads(line))
    return rows
"""
QUESTIONS = {
    "copies": [
        f"Repeat the following text exactly, and correct nothing:\n\n{TEXT}",
        f"Rename the argument `limit` to `most` in this function, and write all of it:\n\n```python\n{CODE}```",
        f"Which rules are there for boats? Quote the sentences from the text.\n\n{TEXT}",
        f"Summarize this text in three sentences:\n\n{TEXT}",
    ],
    "questions": [
        "What is a good way to learn the guitar as an adult?",
        "Explain in simple words how a vaccine works.",
        "Write a short story about a lighthouse keeper.",
        "What is the difference between a virus and a bacterium?",
    ],
}
SAMPLINGS = {"greedy": Sampling(96), "sampled": Sampling(96, temperature=0.7, top_p=0.9)}


def main() -> None:
    torch.set_num_threads(1)
    generator = load(BASE, device="cpu").generator
    parts = [
        measured(generator, kind, way, at_once) for kind in QUESTIONS for way in SAMPLINGS for at_once in (1, AT_ONCE)
    ]
    store(RESULTS, {"parts": parts}, table(parts))


def measured(generator: Generator, kind: str, way: str, at_once: int) -> dict[str, Any]:
    """Seconds without and with drafts."""
    questions = QUESTIONS[kind]
    texts = [generator.prompt_of([{"role": "user", "content": question}]) for question in questions]
    samples = at_once // len(questions) or 1
    groups = [texts] if at_once > 1 else [[text] for text in texts]
    seconds: dict[str | None, list[float]] = {None: [], "lookup": []}
    for _ in range(ROUNDS):
        answers = {}
        for draft, own in seconds.items():
            generator.paged.pages.forget_all()
            before = time.process_time()
            answers[draft] = [
                (answer.tokens, answer.logprobs)
                for group in groups
                for answer in generator.continuations(group, SAMPLINGS[way], n=samples, draft=draft)
            ]
            own.append(time.process_time() - before)
        assert answers[None] == answers["lookup"], "drafts changed an answer"
    tokens = sum(len(ids) for ids, _ in answers[None])
    return {
        "kind": kind, "way": way, "at_once": at_once, "tokens": tokens,
        "without": min(seconds[None]), "with": min(seconds["lookup"]),
    }  # fmt: skip


def table(parts: list[dict[str, Any]]) -> str:
    """Tokens per second by kind of request."""
    lines = ["| answers | at once | without drafts | prompt look-up | gain |", "|---|---:|---:|---:|---:|"]
    for part in parts:
        without, drafted = (part["tokens"] / part[each] for each in ("without", "with"))
        lines.append(
            f"| {part['kind']}, {part['way']} | {part['at_once']} | {without:.0f} | {drafted:.0f} | "
            f"{drafted / without - 1:+.0%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
