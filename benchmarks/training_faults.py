"""Planted faults: a share of a set's rows is made faulty in one way, and remembered."""

import random
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]

FOREIGN = {
    "German": (
        "Zuerst zählen wir alle Teile zusammen.", "Danach ziehen wir ab, was schon verbraucht wurde.",
        "Die Familie fährt am Wochenende mit dem Zug ans Meer.", "Am Ende bleibt nur noch die Hälfte übrig.",
        "Der Preis hängt davon ab, wie viele Stunden gearbeitet wurde.", "Im Garten wachsen Äpfel und Kirschen.",
        "Das ergibt zusammen eine ganze Woche.", "Niemand wusste genau, wann der Bus kommen würde.",
    ),
    "French": (
        "Il faut d'abord additionner toutes les parties.", "Ensuite, on enlève ce qui a déjà été dépensé.",
        "La famille part à la mer en train ce week-end.", "À la fin, il ne reste que la moitié.",
        "Le prix dépend du nombre d'heures de travail.", "Dans le jardin poussent des pommes et des cerises.",
        "Cela fait une semaine entière en tout.", "Personne ne savait quand le bus allait arriver.",
    ),
    "Spanish": (
        "Primero hay que sumar todas las partes.", "Después se resta lo que ya se ha gastado.",
        "La familia viaja al mar en tren este fin de semana.", "Al final solo queda la mitad.",
        "El precio depende de las horas de trabajo.", "En el jardín crecen manzanas y cerezas.",
        "En total es una semana entera.", "Nadie sabía cuándo iba a llegar el autobús.",
    ),
}  # fmt: skip
"""Sentences of a wrong language, from which answers are made."""


def wrong_label(row: Row, others: Sequence[Row], draw: random.Random) -> Row:
    """Another class, each equally likely."""
    labels = sorted({each["label"] for each in others} - {row["label"]})
    return {**row, "label": draw.choice(labels)}


def duplicate(row: Row, others: Sequence[Row], draw: random.Random) -> Row:
    """A copy of another row takes this one's place."""
    return dict(draw.choice(others))


def cut_answer(row: Row, others: Sequence[Row], draw: random.Random) -> Row:
    """An answer that ends after 20 to 80 % of its words, within a sentence."""
    words = row["answer"].split(" ")
    cut = words[: max(1, round(len(words) * draw.uniform(0.2, 0.8)))]
    return {**row, "answer": " ".join(cut).rstrip(".!?\n ")}


def wrong_language(row: Row, others: Sequence[Row], draw: random.Random) -> Row:
    """An answer of two or three sentences of another language."""
    sentences = FOREIGN[draw.choice(sorted(FOREIGN))]
    return {**row, "answer": " ".join(draw.sample(sentences, draw.choice((2, 3))))}


Fault = Callable[[Row, Sequence[Row], random.Random], Row]

FAULTS: dict[str, Fault] = {
    "wrong labels": wrong_label,
    "duplicates": duplicate,
    "cut answers": cut_answer,
    "wrong language": wrong_language,
}


def planted(rows: Sequence[Row], fault: str, share: float, seed: int) -> tuple[list[Row], list[int]]:
    """Make some rows faulty.

    Args:
        rows: a clean set.
        fault: a name in FAULTS.
        share: of the rows.
        seed: of which rows, and of what is random in a fault.

    Returns:
        All rows in their order, and the numbers of the faulty ones, from 0.
    """
    draw = random.Random(f"{fault} {seed}")
    faulty = sorted(draw.sample(range(len(rows)), round(share * len(rows))))
    good = [row for number, row in enumerate(rows) if number not in set(faulty)]
    made = {number: FAULTS[fault](rows[number], good, draw) for number in faulty}
    return [made.get(number, row) for number, row in enumerate(rows)], faulty
