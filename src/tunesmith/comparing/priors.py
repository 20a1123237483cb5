"""What ways gained in published experiments: prior figures, for advice before there are rows to measure on.

A study is one model on one task, with each way's quality on it. What compares ways of different models is a finding
without a figure. All figures are in points: hundredths of the study's metric.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Change = Literal["facts", "form", "labels", "reasoning", "both"]
"""What must change: facts that stand in documents, a form or style, which class is named, steps of reasoning, or facts
and form."""

ReadIn = Literal["abstract", "paper", "leaderboard", "note"]
"""Where we read a figure: in the paper's abstract or its tables, on the benchmark's leaderboard, or in a public note
that quotes the paper's table."""

Range = tuple[float, float]
"""The lowest and the highest that studies found, in points. No confidence interval."""


@dataclass(frozen=True, slots=True)
class Study:
    """One published experiment.

    Attributes:
        paper: authors and year.
        source: where it is: arXiv number or venue, and the table.
        setting: model, task and metric.
        changes: the kinds of change that it is evidence for.
        points: quality by way; `plain` is 0 where only a difference is reported.
        read_in: where we read the figures.
        caution: what limits the comparison; empty if nothing does in particular.
    """

    paper: str
    source: str
    setting: str
    changes: tuple[Change, ...]
    points: Mapping[str, float]
    read_in: ReadIn
    caution: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A published finding without a figure that fits here.

    Attributes:
        changes: that it is about.
        text: what was found.
        source: paper and number.
    """

    changes: tuple[Change, ...]
    text: str
    source: str


_OVADIA = ("Ovadia et al. 2024", "arXiv 2312.05934, current events")
_BALAGUER = ("Balaguer et al. 2024", "arXiv 2401.08406, abstract and GPT-4's accuracies")
_LIU = ("Liu, N. et al. 2024", "arXiv 2307.03172, tables 1 and 6")
_RAFT = ("Zhang et al. 2024", "arXiv 2403.10131, table 1")
_WEI = ("Wei et al. 2022", "arXiv 2201.11903, table 2")
_S1 = ("Muennighoff et al. 2025", "arXiv 2501.19393, abstract and main results")
_LEMOS = ("Lemos et al. 2025", "arXiv 2507.03620, abstract")
_RAW = "trained on the documents' text, not on questions"
_STEPS = "both have 8 examples; few_shot's show the steps"

STUDIES: tuple[Study, ...] = (
    Study(*_OVADIA, "Mistral-7B, multiple choice", ("facts",),
          {"plain": 48.1, "retrieval": 87.5, "tuned": 50.4}, "note", _RAW),
    Study(*_OVADIA, "Mistral-7B, trained on paraphrases too", ("facts",),
          {"plain": 48.1, "retrieval": 87.5, "tuned": 58.8}, "note", _RAW),
    Study(*_OVADIA, "Llama-2-7B, multiple choice", ("facts",), {"plain": 35.3, "tuned": 21.9}, "note", _RAW),
    Study(*_LIU, "GPT-3.5-Turbo, 20 documents, the answer in the first", ("facts",),
          {"plain": 56.1, "retrieval": 75.8}, "note"),
    Study(*_LIU, "GPT-3.5-Turbo, 20 documents, the answer in the middle", ("facts",),
          {"plain": 56.1, "retrieval": 53.8}, "note"),
    Study(*_BALAGUER, "GPT-4, questions on agriculture, judged by GPT-4", ("facts", "both"),
          {"plain": 75.0, "tuned": 81.0, "tuned_retrieval": 86.0}, "note"),
    Study(*_RAFT, "Llama-2-7B, PubMedQA", ("both",),
          {"retrieval": 58.8, "tuned_retrieval": 71.6, "retrieval_tuned": 73.3}, "note"),
    Study(*_RAFT, "Llama-2-7B, HotpotQA", ("both",),
          {"retrieval": 0.03, "tuned": 6.38, "tuned_retrieval": 4.41, "retrieval_tuned": 35.28}, "note"),
    Study(*_RAFT, "Llama-2-7B, Hugging Face API calls", ("both",),
          {"retrieval": 26.43, "tuned": 61.06, "tuned_retrieval": 42.59, "retrieval_tuned": 74.0}, "note"),
    Study(*_RAFT, "Llama-2-7B, Torch Hub API calls", ("both",),
          {"retrieval": 8.6, "tuned": 84.94, "tuned_retrieval": 82.8, "retrieval_tuned": 84.95}, "note"),
    Study(*_RAFT, "Llama-2-7B, TensorFlow Hub API calls", ("both",),
          {"retrieval": 43.06, "tuned": 86.56, "tuned_retrieval": 60.29, "retrieval_tuned": 86.86}, "note"),
    Study("Zhao et al. 2024", "arXiv 2405.00732, abstract", "10 models, mean of 31 tasks, 4-bit LoRA",
          ("form", "labels"), {"plain": 0.0, "tuned": 34.0}, "abstract", "tasks of many kinds"),
    Study("Alex et al. 2021", "arXiv 2109.14076, leaderboard", "GPT-3, 11 tasks with 50 rows each, F1", ("labels",),
          {"plain": 29.2, "few_shot": 62.7}, "leaderboard"),
    Study(*_LEMOS, "routing of requests, prompt found by DSPy", ("labels",),
          {"plain": 85.0, "prompt": 90.0}, "abstract"),
    Study(*_LEMOS, "verdicts on prompts, prompt found by DSPy", ("labels",),
          {"plain": 46.2, "prompt": 64.0}, "abstract"),
    Study(*_WEI, "PaLM 8B, GSM8K", ("reasoning",), {"plain": 4.9, "few_shot": 4.1}, "paper", _STEPS),
    Study(*_WEI, "PaLM 62B, GSM8K", ("reasoning",), {"plain": 9.6, "few_shot": 29.9}, "paper", _STEPS),
    Study(*_WEI, "PaLM 540B, GSM8K", ("reasoning",), {"plain": 17.9, "few_shot": 56.9}, "paper", _STEPS),
    Study(*_S1, "Qwen2.5-32B-Instruct, 1,000 rows, MATH500", ("reasoning",), {"plain": 84.0, "tuned": 93.0}, "note"),
    Study(*_S1, "Qwen2.5-32B-Instruct, 1,000 rows, AIME24", ("reasoning",), {"plain": 26.7, "tuned": 50.0}, "note",
          "30 questions"),
)  # fmt: skip
"""Left out: figures that we remember but found nowhere to check, and gains in percent of a baseline."""

FINDINGS: tuple[Finding, ...] = (
    Finding(
        ("facts", "both"),
        "New facts are learned slowly by fine-tuning, and once learned they raise the rate of made-up answers.",
        "Gekhman et al. 2024, arXiv 2405.05904",
    ),
    Finding(
        ("facts", "both"),
        "For facts about things that few texts mention, retrieval is far ahead of fine-tuning.",
        "Soudani et al. 2024, arXiv 2403.01432",
    ),
    Finding(
        ("facts", "both"),
        "An excerpt in the middle of many is used less than the first or the last: few excerpts are better.",
        "Liu, N. et al. 2024, arXiv 2307.03172",
    ),
    Finding(
        ("form",),
        "A tone of voice was reached more reliably by fine-tuning on 100 rows than by a system prompt.",
        "Marquardt & Brule 2025, arXiv 2507.04889",
    ),
    Finding(
        ("form",),
        "Small fine-tuned models wrote better workflows in JSON than large prompted ones.",
        "Marquez Ayala et al. 2025, arXiv 2505.24189",
    ),
    Finding(
        ("labels",),
        "T0 with 11 billion parameters, fine-tuned on 50 rows a task, reached 75.8 % where GPT-3 with examples in the "
        "prompt reached 62.7 %.",
        "Liu, H. et al. 2022, arXiv 2205.05638, leaderboard of the RAFT benchmark",
    ),
    Finding(
        ("labels",),
        "Small fine-tuned encoders were 10 to 25 points ahead of large models without examples; examples that resemble "
        "the question closed the gap.",
        "Khrapunova, ASRJETS, article 12048",
    ),
    Finding(
        ("labels",),
        "Small fine-tuned models were ahead of large prompted ones on every classification task tried.",
        "Bucher & Martini 2024, arXiv 2406.08660",
    ),
    Finding(
        ("labels", "form"),
        "With the same model and 16 rows, examples in the prompt and fine-tuning generalize similarly, and vary much.",
        "Mosbach et al. 2023, arXiv 2305.16938",
    ),
    Finding(
        ("reasoning",),
        "Examples with steps help large models; most models of 8 billion parameters and fewer gain nothing.",
        "Wei et al. 2022, arXiv 2201.11903",
    ),
)


def studies_on(change: Change) -> tuple[Study, ...]:
    """The studies of a kind of change.

    Args:
        change: what must change.
    """
    return tuple(study for study in STUDIES if change in study.changes)


def differences(way: str, other: str, studies: Sequence[Study]) -> Range | None:
    """What another way gains over a way, in the studies that measured both.

    Args:
        way: by name.
        other: by name.
        studies: of the same kind of change.

    Returns:
        other − way, the lowest and the highest; None if no study measured both.
    """
    found = [study.points[other] - study.points[way] for study in studies if {way, other} <= study.points.keys()]
    return (min(found), max(found)) if found else None


def papers_on(way: str, studies: Sequence[Study]) -> tuple[str, ...]:
    """The papers that measured a way, each once.

    Args:
        way: by name.
        studies: of the same kind of change.
    """
    return tuple(dict.fromkeys(study.paper for study in studies if way in study.points))
