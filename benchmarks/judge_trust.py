"""How far SmolLM2-135M-Instruct can be trusted as a judge: does it agree with itself, and with labels by a known rule?

    python benchmarks/judge_trust.py     # about four minutes; writes results/judge_trust.json and .md

SmolLM2-135M-Instruct and the embedded model answer questions that have one right word. SmolLM2 then says which of the
two answers is better, twice, in both orders. Labels come from a rule and not from people: the answer with the right
word is better; if both or none have it, neither is.
"""

import argparse
from datetime import date
from pathlib import Path
from typing import Any

from stored_result import measure_and_store
from study_rows import write_pairs, write_rows
from train_speed_report import machine

RESULTS = Path(__file__).parent / "results" / "judge_trust.json"
FIRST, SECOND = "embedded", "smollm2-135m-instruct"
JUDGE = "smollm2-135m-instruct"
ANSWER = 24
"""The most tokens of an answer."""

QUESTIONS = (
    ("What is the capital of France?", "Paris"), ("What is the capital of Japan?", "Tokyo"),
    ("What is the capital of Italy?", "Rome"), ("What is the capital of Egypt?", "Cairo"),
    ("What is the capital of Spain?", "Madrid"), ("What is the capital of Canada?", "Ottawa"),
    ("How many legs has a spider? Write a word.", "eight"), ("How many days has a week? Write a word.", "seven"),
    ("Which planet is the nearest to the sun?", "Mercury"), ("Which planet is the largest?", "Jupiter"),
    ("Which gas do plants take in?", "carbon"), ("At how many degrees Celsius does water boil?", "100"),
    ("Who wrote Hamlet?", "Shakespeare"), ("Who wrote Don Quixote?", "Cervantes"),
    ("What is the opposite of hot?", "cold"), ("What is the opposite of early?", "late"),
    ("What is the plural of mouse?", "mice"), ("What is the past tense of go?", "went"),
    ("Which animal barks?", "dog"), ("Which animal says meow?", "cat"),
    ("What color is a ripe banana?", "yellow"), ("What color is grass?", "green"),
    ("On which continent is Kenya?", "Africa"), ("On which continent is Brazil?", "America"),
)  # fmt: skip
"""With the word that a right answer has."""


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    measure_and_store(RESULTS, judged, table)


def judged(directory: Path) -> dict[str, Any]:
    """Answer, label and judge.

    Args:
        directory: for rows and labels.

    Returns:
        `date`; `right`: how many answers of each model have the right word; `wins` and `about`: as `evaluate` has them.
    """
    import tunesmith

    rows, labels = directory / "questions.jsonl", directory / "labels.jsonl"
    write_pairs(rows, QUESTIONS)
    first, second = right_answers(FIRST), right_answers(SECOND)
    preferred = ["tie" if a == b else FIRST if a else SECOND for a, b in zip(first, second, strict=True)]
    sources = [f"{rows} row {number}" for number in range(1, len(QUESTIONS) + 1)]
    labeled = zip(sources, preferred, strict=True)
    write_rows(labels, [{"source": source, "model": SECOND, "preferred": each} for source, each in labeled])
    found = tunesmith.evaluate(
        [FIRST, SECOND], None, ANSWER, data=rows, judge=JUDGE, judge_pairs=True, labels=labels
    )  # fmt: skip
    return {
        "date": date.today().isoformat(), "questions": len(QUESTIONS), "right": [sum(first), sum(second)],
        "by_labels": (preferred.count(SECOND) + preferred.count("tie") / 2) / len(preferred),
        "wins": found["models"][SECOND]["judge.wins"], "about": found["judge"]["models"][SECOND],
    }  # fmt: skip


def right_answers(model: str) -> list[bool]:
    """Which questions a model answers with the right word; the evaluation finds the same answers in the cache.

    Args:
        model: its name.

    Returns:
        (questions,)
    """
    from tunesmith.evaluation.subjects import SubjectName, open_subject
    from tunesmith.inference.sampling import Sampling

    subject = open_subject(SubjectName.parse(model), model)
    try:
        chats = [[{"role": "user", "content": question}] for question, _ in QUESTIONS]
        answers = subject.answers(chats, Sampling(ANSWER))
    finally:
        subject.close()
    return [word.lower() in answer.text.lower() for answer, (_, word) in zip(answers, QUESTIONS, strict=True)]


def table(found: dict[str, Any]) -> str:
    """As Markdown.

    Args:
        found: of `judged`.

    Returns:
        The table, with what it was measured on.
    """
    about, on = found["about"], machine()
    first, second = found["right"]
    rows = [
        ("replies that could not be read", f"{about['unread']} of {about['replies']}"),
        ("agrees with itself, the answers in the other order", _share(about["itself"])),
        ("  by chance it would", f"{about['itself']['chance']:.0%}"),
        (f"answers of {SECOND} preferred, by the judge", _share(found["wins"])),
        ("  by the labels", f"{found['by_labels']:.0%}"),
        ("  by the judge, corrected by the labels", _share(about["corrected"])),
        ("agrees with the labels", _share(about["people"])),
        ("  beyond chance (kappa)", _share(about["kappa"], "{:.2f}")),
    ]
    lines = [f"| {name.strip()} | {value} |" for name, value in rows]
    text = (
        f"{JUDGE} judges {found['questions']} pairs of answers, of {FIRST} ({first} right) and of itself ({second} "
        f"right). Labels by the rule that the answer with the right word is better. In brackets the 95 % interval. "
        f"{on['processor']}, {on['cores']} cores, {found['date']}."
    )
    return "\n".join([text, "", "| | |", "|---|---:|", *lines]) + "\n"


def _share(entry: dict[str, Any], form: str = "{:.0%}") -> str:
    low, high = (form.format(end) for end in entry["interval"])
    return f"{form.format(entry['value'])} ({low} to {high})"


if __name__ == "__main__":
    main()
