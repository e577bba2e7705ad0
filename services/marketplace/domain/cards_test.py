"""What a card says is read as it was written, and what is wrong with it is said with its line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import Invalid
from services.marketplace.domain.cards import check_card, read_front
from services.marketplace.domain.prices import check_price, words

CARD = """---
# what it may be used for
license: apache-2.0  # an id
language: [no, "en"]
tags:
- medicine
- 'tables'
version: 1.10
title: "Breast check: yes"
model-index:
  - name: wdbc
    results: []
---
# Breast check
--- more
"""


def test_a_card_is_read_as_it_was_written() -> None:
    front = check_card(CARD)
    assert front["license"] == "apache-2.0"
    assert front["language"] == ["no", "en"]
    assert front["tags"] == ["medicine", "tables"]
    assert (front["version"], front["title"]) == ("1.10", "Breast check: yes")
    assert check_card(CARD.replace("\n", "\r\n")) == front
    assert check_card("---\nlicense:\n- MIT\n---")


@pytest.mark.parametrize(
    ("card", "where", "words"),
    [
        ("", "card line 1", "begins with a front matter"),
        ("# Breast check", "card line 1", "begins with a front matter"),
        ("---\nlicense: mit\n", "card", "closed by a line"),
        ("---\ntags: [a]\n---", "card", "must name a license"),
        ("---\nlicense:\n---", "card", "must name a license"),
        ("---\nlicense: Apache 2.0\n---", "card.license", r"did you mean apache-2\.0"),
        ("---\nlicense: free for everybody to use\n---", "card.license", "license_name and license_link"),
        ("---\nlicense: [mit, isc]\n---", "card.license", "one license"),
        ("---\nlicense: other\nlicense_name: Ours\n---", "card.license", "also needs license_link"),
        ("---\nlicense: mit\nlicense: isc\n---", "card line 3", "a second time"),
        ("---\nlicense: mit\nwhat is this\n---", "card line 3", "key: value"),
        ("---\nlicense: mit\nlicense_name:x\n---", "card line 3", "key: value"),
        ("---\n  license: mit\n---", "card line 2", "belongs to no key"),
        ("---\nlicense: mit\ntags: [a,\n---", "card line 3", "end with ']'"),
        ("---\nlicense: !!python/object/apply:os.system ['id']\n---", "card line 2", "put quotes"),
    ],
)
def test_what_is_wrong_is_said(card: str, where: str, words: str) -> None:
    with pytest.raises(Invalid, match=words) as refused:
        check_card(card)
    assert refused.value.errors[0].field == where


@given(st.text() | st.text(alphabet="-:\n []'\"#abc|>").map(lambda text: f"---\n{text}\n---\n"))
def test_any_text_is_read_or_refused(card: str) -> None:
    try:
        read_front(card)
    except Invalid:
        pass


def test_prices() -> None:
    assert check_price("USD", 2000) == 2000
    assert [words(micros) for micros in (0, 2000, 1_000_000, 10_000_000, 1_500_000)] == [
        "free",
        "0.002 USD a row",
        "1 USD a row",
        "10 USD a row",
        "1.5 USD a row",
    ]
    for currency, micros in (("EUR", 1), ("", 1), ("USD", -1), ("USD", 1_000_000_001)):
        with pytest.raises(Invalid, match="must be"):
            check_price(currency, micros)
