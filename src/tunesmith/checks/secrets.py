"""Keys, tokens and passwords in a text, by the forms that their issuers document, and by entropy.

The forms are those of the default rules of gitleaks 8 (MIT license, github.com/gitleaks/gitleaks, config/gitleaks.toml)
for the services that texts for language models name most.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from tunesmith.checks.check import Detail, RowCheck
from tunesmith.checks.finding import Finding, described, without_overlaps
from tunesmith.checks.pseudonyms import without_pseudonyms
from tunesmith.checks.record import Record
from tunesmith.checks.shape import digits, has_long_token
from tunesmith.checks.traits import Trait


@dataclass(frozen=True, slots=True)
class SecretForm:
    """How a kind of secret looks.

    Attributes:
        kind: its name.
        keyword: a part that each has: the pattern is tried only where it occurs.
        pattern: the whole secret.
    """

    kind: str
    keyword: str
    pattern: re.Pattern[str]


def _form(kind: str, keyword: str, pattern: str) -> SecretForm:
    return SecretForm(kind, keyword, re.compile(rf"(?<![A-Za-z0-9]){pattern}"))


FORMS = (
    _form("aws_key", "AKIA", r"AKIA[A-Z2-7]{16}(?![A-Za-z0-9])"),
    _form("aws_key", "ASIA", r"ASIA[A-Z2-7]{16}(?![A-Za-z0-9])"),
    _form("github_token", "ghp_", r"ghp_[0-9a-zA-Z]{36}"),
    _form("github_token", "gho_", r"gho_[0-9a-zA-Z]{36}"),
    _form("github_token", "ghs_", r"ghs_[0-9a-zA-Z]{36}"),
    _form("github_token", "ghu_", r"ghu_[0-9a-zA-Z]{36}"),
    _form("github_token", "ghr_", r"ghr_[0-9a-zA-Z]{36}"),
    _form("github_token", "github_pat_", r"github_pat_\w{36,82}"),
    _form("gitlab_token", "glpat-", r"glpat-[\w-]{20}"),
    _form("slack_token", "xox", r"xox[baeprs]-[0-9a-zA-Z-]{10,}"),
    _form(
        "slack_webhook", "hooks.slack.com", r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9+/]{30,60}"
    ),
    _form("anthropic_key", "sk-ant-", r"sk-ant-[\w-]{20,}"),
    _form("openai_key", "sk-", r"sk-(?!ant-)(?=[\w-]*\d)(?=[\w-]*[A-Z])(?:proj-|svcacct-|admin-|None-)?[\w-]{20,}"),
    _form("google_key", "AIza", r"AIza[\w-]{35}(?![\w-])"),
    _form("google_token", "ya29.", r"ya29\.[\w-]{20,}"),
    _form("stripe_key", "k_live_", r"[sr]k_live_[a-zA-Z0-9]{10,99}"),
    _form("stripe_key", "k_test_", r"[sr]k_test_[a-zA-Z0-9]{10,99}"),
    _form("hugging_face_token", "hf_", r"hf_[a-zA-Z0-9]{34}(?![a-zA-Z0-9])"),
    _form("npm_token", "npm_", r"npm_[a-zA-Z0-9]{36}"),
    _form("pypi_token", "pypi-", r"pypi-AgE[\w-]{50,}"),
    _form("sendgrid_key", "SG.", r"SG\.[\w-]{16,32}\.[\w-]{16,64}"),
    _form("twilio_key", "SK", r"SK[0-9a-f]{32}(?![0-9a-zA-Z])"),
    _form("digitalocean_token", "dop_v1_", r"dop_v1_[a-f0-9]{64}"),
    _form("shopify_token", "shp", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"),
    _form("telegram_token", ":AA", r"\d{8,10}:AA[\w-]{33}(?![\w-])"),
    _form("jwt", "eyJ", r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    _form(
        "private_key",
        "PRIVATE KEY",
        r"-----BEGIN[ A-Z0-9]{0,40}PRIVATE KEY(?: BLOCK)?-----"
        r"(?:[\s\S]{0,10000}?-----END[ A-Z0-9]{0,40}PRIVATE KEY(?: BLOCK)?-----|[\sA-Za-z0-9+/=\\]*)",
    ),
)

SHORTEST = 20
"""Characters that every secret with a form has without a space."""

_URL_PASSWORD = re.compile(r"://[^\s/:@\"'<>]{0,64}:([^\s/@\"'<>]{3,128})@")

_ASSIGNED = re.compile(r"[:=]>?\s{0,3}[\"'`]?([A-Za-z0-9+/_\-.=!@#$%^&*~]{8,150})(?![\w(\[{<])")
_KEY = re.compile(r"(?:key|secret|token|auth|credentials?)[\"'`\])]{0,2}\s{0,2}$", re.IGNORECASE)
_PASSWORD = re.compile(r"(?:passw(?:or)?d|passphrase|pwd|passwort|contraseña)[\"'`\])]{0,2}\s{0,2}$", re.IGNORECASE)
_NAME = 40
"""Characters before a value that may name it."""

_PLACEHOLDER = re.compile(
    r"x{4}|\*{3}|\.{3}|your|example|placeholder|changeme|dummy|redacted|insert|env|password|secret|0{6}|12345678",
    re.IGNORECASE,
)

_LONG_TOKEN = re.compile(r"[A-Za-z0-9+/_-]{24,100}={0,2}(?![\w/+.\-%@])")
_IN_A_URL = "/+=.-#?&%@:_"
_KEY_ENTROPY, _BARE_ENTROPY = 3.5, 4.25
"""Bits per character: gitleaks asks for 3.5 of a value that is named as a key; a bare token needs more."""


def secrets(text: str) -> list[Finding]:
    """Secrets that their form or their entropy shows.

    Args:
        text: any text.

    Returns:
        Without overlaps, in the order of the text. A finding's value is the secret: show only its `hint`.
    """
    found: list[Finding] = []
    if has_long_token(text, SHORTEST):
        found += _with_forms(text)
        found += _bare(text)
    if "://" in text and "@" in text:
        found += [Finding("url_password", *match.span(1), match[1]) for match in _URL_PASSWORD.finditer(text)]
    if ("=" in text or ":" in text) and digits(text):
        found += _assigned(text)
    return without_overlaps(without_pseudonyms(text, found)) if found else found


def entropy(text: str) -> float:
    """The Shannon entropy of a text's characters, in bits per character."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _with_forms(text: str) -> Iterator[Finding]:
    for form in FORMS:
        if form.keyword in text:
            for match in form.pattern.finditer(text):
                yield Finding(form.kind, match.start(), match.end(), match[0])


def _assigned(text: str) -> Iterator[Finding]:
    """Values behind a name for a key or a password."""
    for match in _ASSIGNED.finditer(text):
        name, value = text[max(0, match.start() - _NAME) : match.start()], match[1].rstrip(".")
        if not _mixes(value) or _PLACEHOLDER.search(value):
            continue
        is_key = len(value) >= 16 and _KEY.search(name) and entropy(value) >= _KEY_ENTROPY
        if is_key or _PASSWORD.search(name):
            yield Finding("key" if is_key else "password", match.start(1), match.start(1) + len(value), value)


def _bare(text: str) -> Iterator[Finding]:
    """Tokens that look drawn at random: letters of both cases and digits, which change often."""
    for match in _LONG_TOKEN.finditer(text):
        token = match[0]
        if match.start() and text[match.start() - 1] in _IN_A_URL:
            continue
        if _changes(token) >= len(token) / 3 and entropy(token) >= _BARE_ENTROPY and not _PLACEHOLDER.search(token):
            yield Finding("random_token", match.start(), match.end(), token)


def _mixes(value: str) -> bool:
    return any(map(str.isdigit, value)) and any(map(str.isalpha, value))


def _changes(token: str) -> int:
    """How often neighbors are of different kinds: lower case, upper case, digit, other."""
    kinds = [0 if c.islower() else 1 if c.isupper() else 2 if c.isdigit() else 3 for c in token]
    return sum(a != b for a, b in pairwise(kinds)) if {0, 1, 2} <= {*kinds} else 0


def _find(record: Record) -> Detail | None:
    return described({place: secrets(text) for place, text in record.places()})


SECRETS = RowCheck(
    name="secrets",
    title="Keys and passwords",
    severity="error",
    advice="Revoke them if they are real, and mask them (`tunesmith data clean`): a model can repeat them.",
    find=_find,
    traits=Trait.AT | Trait.TOKEN | Trait.VALUE,
)
