"""Does the recommendation of `tunesmith compare` keep its promises, where the truth is known?

    python benchmarks/compare_simulation.py [--draws 600]          # about eight minutes of one core

Ways with known qualities answer the same made-up rows, right or wrong (or with a score from 0 to 1), with correlated
answers. In each draw the rules choose. Counted are: how often the 95 % interval of a difference from the first way
holds the true difference; how often the rules are certain; and how often what they are certain of is more than the
margin below the best. Writes results/compare_simulation.{json,md} and puts the table into docs/deciding.md.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import beta

from tunesmith.comparing.recommendation import MARGIN, Option, choose
from tunesmith.statistics.differences import paired
from tunesmith.statistics.intervals import wilson
from tunesmith.statistics.measured import mean_of

RESULTS = Path(__file__).parent / "results" / "compare_simulation.json"
TRUTHS: dict[str, Sequence[float]] = {
    "all equal": (0.4,) * 6,
    "one far ahead": (0.1, 0.2, 0.3, 0.3, 0.3, 0.8),
    "two ahead, equal": (0.2, 0.3, 0.4, 0.7, 0.7, 0.5),
    "a costly one 3 points ahead": (0.6, 0.5, 0.5, 0.4, 0.5, 0.63),
    "a costly one 8 points ahead": (0.6, 0.5, 0.5, 0.4, 0.5, 0.68),
}
ROWS = (30, 100, 300, 1000)
CORRELATION = 0.5
"""Of the ways' answers to a row: easy rows are easy for all."""


def scores_of(qualities: Sequence[float], rows: int, draw: np.random.Generator, are_hits: bool) -> NDArray[np.float64]:
    """Scores with the given means.

    Args:
        qualities: (ways,).
        rows: how many.
        draw: of random numbers.
        are_hits: whether they are 0 or 1; else they are between, spread as an F1 of words is.

    Returns:
        (ways, rows).
    """
    shared = draw.standard_normal(rows) * CORRELATION**0.5
    own = draw.standard_normal((len(qualities), rows)) * (1 - CORRELATION) ** 0.5
    normal = shared + own
    means = np.asarray(qualities)[:, None]
    if are_hits:
        return np.where(normal < ndtri(means), 1.0, 0.0)
    found: NDArray[np.float64] = beta.ppf(1 - ndtr(normal), 2 * means, 2 * (1 - means))
    return found


def trial(qualities: Sequence[float], rows: int, draws: int, are_hits: bool) -> dict[str, float]:
    """Draw rows many times, and count.

    Args:
        qualities: the truth.
        rows: of each draw.
        draws: how many.
        are_hits: as in `scores_of`.

    Returns:
        Shares of the draws: `covered` (of all differences), `certain`, `wrong`.
    """
    draw = np.random.default_rng([rows, draws, int(1000 * sum(qualities)), are_hits])
    units = [str(row) for row in range(rows)]
    covered, certain, wrong = [], [], []
    for _ in range(draws):
        scores = scores_of(qualities, rows, draw, are_hits)
        figures = [mean_of(own, units, "score", "") for own in scores]
        for way, figure in enumerate(figures[1:], 1):
            difference = paired(figures[0], figure)
            assert difference is not None
            low, high = difference.interval
            covered.append(low <= qualities[way] - qualities[0] <= high)
        choice = choose([Option(str(way), figure, way + 1.0) for way, figure in enumerate(figures)])
        certain.append(choice.is_certain)
        wrong.append(choice.is_certain and max(qualities) - qualities[int(choice.way)] > MARGIN + 1e-9)
    return {
        name: float(np.mean(values)) for name, values in (("covered", covered), ("certain", certain), ("wrong", wrong))
    }


def table(found: dict[str, Any]) -> str:
    """All that the page quotes.

    Args:
        found: the content of the stored result.
    """
    lines = [
        f"{found['draws']:,} draws of each line, an eighth as many of scores from 0 to 1; six ways, each costlier than "
        f"the one before it, {found['date']}. Covered: how often the 95 % interval of a difference from the first way "
        "holds the true one. Wrong: certain of a way that is more than 5 points below the best; in brackets its 95 % "
        "interval (Wilson).",
        "",
        "| scores | truth | rows | covered | certain | wrong |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for each in found["trials"]:
        low, high = wilson(each["wrong"], each["draws"])
        lines.append(
            f"| {each['scores']} | {each['truth']} | {each['rows']:,} | {100 * each['covered']:.1f} % | "
            f"{100 * each['certain']:.0f} % | {100 * each['wrong']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all trials, and write the table."""
    from generation_report import put_on_page

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=600)
    options = parser.parse_args(arguments)
    trials = []
    for are_hits in (True, False):
        for truth, qualities in TRUTHS.items():
            for rows in ROWS if are_hits else (30, 100):  # scores that are not hits are resampled, which takes long
                draws = options.draws if are_hits else options.draws // 8
                found = trial(qualities, rows, draws, are_hits)
                trials.append(
                    {
                        "scores": "0 or 1" if are_hits else "0 to 1",
                        "truth": truth,
                        "rows": rows,
                        "draws": draws,
                        **found,
                    }
                )
                print(trials[-1], flush=True)
    result = {"draws": options.draws, "date": date.today().isoformat(), "trials": trials}
    RESULTS.write_text(json.dumps(result, indent=1), encoding="utf-8")
    put_on_page(table(result), RESULTS.with_suffix(".md"), Path(__file__).parents[1] / "docs" / "deciding.md")


if __name__ == "__main__":
    main()
