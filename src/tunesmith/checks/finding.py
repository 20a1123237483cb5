"""A place in a text that a check marks."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tunesmith.checks.check import Detail


@dataclass(frozen=True, slots=True)
class Finding:
    """A place in a text.

    Attributes:
        kind: what it is: `email`, `github_token`.
        start, end: in characters; `end` is behind the last one.
        value: what stands there.
    """

    kind: str
    start: int
    end: int
    value: str

    @property
    def hint(self) -> str:
        """Its kind and first characters: what may be shown of it."""
        return f"{self.kind.replace('_', ' ')} {self.value[: min(4, len(self.value) // 3)]}…"


def without_overlaps(findings: Iterable[Finding]) -> list[Finding]:
    """Of findings that overlap, the one that comes first among them.

    Args:
        findings: the most specific first.

    Returns:
        In the order of the text.
    """
    kept: list[Finding] = []
    for finding in findings:
        if all(finding.end <= other.start or finding.start >= other.end for other in kept):
            kept.append(finding)
    return sorted(kept, key=lambda finding: finding.start)


def described(found: dict[str, list[Finding]], shown: int = 3) -> Detail | None:
    """Findings by where they are, as a clause; None if there are none. More of them are worse.

    Args:
        found: by the name of the text: `the prompt`.
        shown: how many to show before the others are only counted.
    """
    clauses = Counter(f"{finding.hint} in {place}" for place, findings in found.items() for finding in findings)
    if not clauses:
        return None
    parts = [clause if count == 1 else f"{clause} ({count:,} times)" for clause, count in clauses.items()]
    left = clauses.total() - sum(list(clauses.values())[:shown])
    return Detail(", ".join(parts[:shown]) + (f" and {left:,} more" if left else ""), clauses.total())
