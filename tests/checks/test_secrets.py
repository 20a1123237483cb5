"""Secrets are found by their issuers' forms and by entropy, and never shown whole."""

import pytest

from tunesmith.checks.record import Record
from tunesmith.checks.secrets import FORMS, SECRETS, secrets
from tunesmith.data.example import Source

MIXED = "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7cF0xL3nR6"  # 36 characters; no test holds a whole secret, as scanners would find it

FOUND = {
    "aws_key": "AKIA" + "QYLPMN5HHHFPZAM2",
    "github_token": "ghp_" + MIXED,
    "gitlab_token": "glpat-" + MIXED[:20],
    "slack_token": "xoxb-" + "123456789012-123456789012-" + MIXED[:24],
    "anthropic_key": "sk-ant-" + "api03-" + MIXED,
    "openai_key": "sk-proj-" + MIXED,
    "google_key": "AIza" + MIXED[:35],
    "stripe_key": "sk_live_" + MIXED[:24],
    "hugging_face_token": "hf_" + MIXED[:34],
    "npm_token": "npm_" + MIXED,
    "pypi_token": "pypi-" + "AgEIcHlwaS5vcmc" + MIXED * 2,
    "sendgrid_key": "SG." + MIXED[:22] + "." + MIXED,
    "twilio_key": "SK" + "0123456789abcdef" * 2,
    "telegram_token": "123456789:" + "AA" + MIXED[:33],
    "jwt": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + MIXED,
    "private_key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow" + MIXED + "\n-----END RSA " + "PRIVATE KEY-----",
    "random_token": MIXED,
}

NEAR_MISSES = [
    "AKIA is how they begin; ghp_ and sk- too",
    "the key: to success is work2do",
    "password = input('password: ')",
    "password: your_password1",
    'api_key = os.environ["API_KEY_1"]',
    "d41d8cd98f00b204e9800998ecf8427e",
    "TransformerEncoderLayer2Norm1ForSequenceClassification",
    "https://docs.google.com/d/1BxiMVs0XRA5nFMdKvBdBZjgmUUqptlbs74OgvE2upms/edit",
    "sk-learn-and-other-libraries-of-python",
    "x" * 200,
]


@pytest.mark.parametrize("kind", FOUND)
def test_each_kind_is_found_at_its_place(kind: str) -> None:
    text = f"use {FOUND[kind]} here"
    (finding,) = secrets(text)
    assert finding.kind == kind
    assert text[finding.start : finding.end] == FOUND[kind]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("postgres://user:s3cr3tpw@host/db", "s3cr3tpw"),
        ('"password": "Hunter2024!"', "Hunter2024!"),
        ("client_secret = '8f3kD9pzQkXlm72uWcq1'", "8f3kD9pzQkXlm72uWcq1"),
    ],
)
def test_a_value_behind_its_name_is_found_and_the_name_is_not(text: str, value: str) -> None:
    assert [finding.value for finding in secrets(text)] == [value]


@pytest.mark.parametrize("text", NEAR_MISSES)
def test_what_only_looks_like_a_secret_is_not_found(text: str) -> None:
    assert secrets(text) == []


def test_every_form_is_tried_only_where_its_keyword_is() -> None:
    assert {form.kind for form in FORMS} - {*FOUND} <= {
        "slack_webhook",
        "google_token",
        "digitalocean_token",
        "shopify_token",
    }
    assert all(form.keyword in FOUND[form.kind] for form in FORMS if form.kind in FOUND) is False  # several per kind


@pytest.mark.parametrize("kind", FOUND)
def test_a_secret_is_never_shown_whole(kind: str) -> None:
    detail = SECRETS.find(Record(Source("rows.jsonl", 1), prompt="", answer=FOUND[kind]))
    assert detail is not None
    assert FOUND[kind][:4] in detail.text
    assert FOUND[kind][6:12] not in detail.text
