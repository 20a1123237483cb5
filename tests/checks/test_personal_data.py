"""Personal data is found by form and check digits, with exact places; numbers that only look like it are not."""

import pytest

from tunesmith.checks.personal_data import PERSONAL_DATA, personal_data
from tunesmith.checks.record import Record
from tunesmith.data.example import Source

FOUND = [
    ("email", "write to {} now", "john.o'neil+news@mail.example.co.uk"),
    ("email", "<{}>", "ünal@bücher.example"),
    ("phone", "Call {}.", "+49 30 901820"),
    ("phone", "or {}, please", "(555) 123-4567"),
    ("phone", "or {}", "415-555-2671"),
    ("phone", "appelez le {}", "06 12 34 56 78"),
    ("phone", "Büro {}", "089/12345678"),
    ("phone", "Mobile: {}", "5551234567"),
    ("iban", "to {} PLEASE", "DE89 3704 0044 0532 0130 00"),
    ("iban", "to {}", "GB82WEST12345698765432"),
    ("card", "my card {}, valid", "4111 1111 1111 1111"),
    ("card", "{}", "378282246310005"),
    ("national_id", "SSN {}", "536-22-1234"),
    ("national_id", "NIR {}", "2 55 08 14 168 025 38"),
    ("national_id", "DNI {}.", "54362315K"),
    ("national_id", "{}", "RCCMNL83S18D969H"),
    ("national_id", "CURP {}", "BOXW310820HNERXN09"),
    ("national_id", "AHV {}", "756.9217.0769.85"),
    ("national_id", "född {}", "880320-0016"),
    ("national_id", "{}", "131052-308T"),
    ("national_id", "id {}", "11010219840406970X"),
    ("national_id", "CPF {}", "390.533.447-05"),
    ("national_id", "my BSN is {}", "111222333"),
    ("national_id", "PESEL {}", "44051401359"),
    ("national_id", "Steuer-ID {}", "36 574 261 809"),
    ("national_id", "Aadhaar {}", "2341 2341 2346"),
    ("ip", "from {} at noon", "203.0.113.7"),
    ("ip", "from {}", "2001:db8::8a2e:370"),
]

NEAR_MISSES = [
    "@user said: a@b",
    "IBAN DE88 3704 0044 0532 0130 00 has wrong check digits",
    "card 4111 1111 1111 1112 has a wrong check digit",
    "1234 5678 9012 3456",
    "9811 1111 1111 1116 begins as no issuer's",
    "54362315A is no DNI",
    "PESEL 44051401358",
    "the number 111222333",
    "On 2019-03-24 at 10:30:00, 1,234,567 people",
    "call me on 01/02/2019 12:30",
    "ISBN 978-3-16-148410-0",
    "3.14159265358979",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18",
    "x = 3+1234567890",
    "1990-2000 and 2001-2010",
    "48/2 = <<48/2=24>>24 clips, 48+24 = <<48+24=72>>72",
    "version 10.2.3.4 and 1.2.3.4, on 127.0.0.1 with 255.255.255.0",
    "std::vector<int>::iterator dead::beef",
    "12:30:45",
]


@pytest.mark.parametrize(("kind", "text", "value"), FOUND)
def test_each_kind_is_found_at_its_place(kind: str, text: str, value: str) -> None:
    whole = text.format(value)
    (finding,) = personal_data(whole)
    assert (finding.kind, finding.value) == (kind, value)
    assert whole[finding.start : finding.end] == value


@pytest.mark.parametrize("text", NEAR_MISSES)
def test_what_only_looks_like_personal_data_is_not_found(text: str) -> None:
    assert personal_data(text) == []


def test_a_row_is_described_by_kind_and_place_without_the_whole_value() -> None:
    record = Record(Source("rows.jsonl", 1), prompt="I am ann@example.org", answer="Thanks, call +49 30 901820")
    assert PERSONAL_DATA.find(record) == ("email ann@… in the prompt, phone +49 … in the answer", 2)
    record = Record(Source("rows.jsonl", 1), prompt="ann@example.org, ann@example.org", answer="Ask ann@example.org")
    assert PERSONAL_DATA.find(record) == ("email ann@… in the prompt (2 times), email ann@… in the answer", 3)
    assert PERSONAL_DATA.find(Record(Source("rows.jsonl", 2), prompt="", answer="nothing here")) is None
