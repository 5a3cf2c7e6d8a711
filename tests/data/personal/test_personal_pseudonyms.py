"""Pseudonyms: the same for the same value, of its form, nobody's, and left alone when they are met again."""

import random
import re

import pytest
from labelled import VALUES, labelled

from tunesmith.data.personal import KINDS, find
from tunesmith.data.personal.finance import luhn, mod97
from tunesmith.data.personal.person import INVENTED
from tunesmith.data.personal.pseudonyms import mask, pseudonym, recognised
from tunesmith.data.steps.personal_data import replaced

KEY = b"a key"


def shape(text: str) -> str:
    return re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "0", text))


@pytest.mark.parametrize("kind", ["phone", "card", "ssn", "nhs", "mac", "steuer_id"])
def test_digits_keep_their_shape(kind):
    r = random.Random(0)
    for _ in range(200):
        value = VALUES[kind](r, r.random() < 0.5)
        made = pseudonym(kind, value, KEY)
        assert re.sub(r"[0-9a-fA-F]", "0", made) == re.sub(r"[0-9a-fA-F]", "0", value)


def test_the_same_value_in_any_form_is_the_same_person():
    def of(kind, *values):
        return {re.sub(r"\W", "", pseudonym(kind, v, KEY)) for v in values}

    assert len(of("phone", "(415) 867-5309", "415-867-5309", "415.867.5309", "415 867 5309")) == 1
    assert pseudonym("phone", "+1 415 867 5309", KEY)[-8:] == pseudonym("phone", "415 867 5309", KEY)[-8:]
    assert len(of("card", "4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111")) == 1
    assert len(of("iban", "DE89 3704 0044 0532 0130 00", "DE89370400440532013000")) == 1
    assert len(of("email", "Jo@Acme.org", "jo@acme.org")) == 1
    full, first = pseudonym("name", "Ada Byron", KEY), pseudonym("name", "Ada", KEY)
    assert full.split()[0] == first
    assert pseudonym("name", "ADA", KEY) == first.upper()
    assert pseudonym("name", "Ada de la Cruz", KEY).split()[1:3] == ["de", "la"]


def test_other_values_and_other_keys_differ():
    emails = {pseudonym("email", f"p{i}@acme.org", KEY) for i in range(2000)}
    assert len(emails) == 2000
    assert len({pseudonym("phone", f"415-867-{i:04d}", KEY) for i in range(2000)}) == 2000
    assert pseudonym("email", "jo@acme.org", b"other") != pseudonym("email", "jo@acme.org", KEY)


def test_nobody_can_have_them():
    r = random.Random(1)
    for _ in range(200):
        card = re.sub(r"\D", "", pseudonym("card", VALUES["card"](r, False), KEY))
        assert card.startswith("9999")
        assert luhn(card)
        iban = re.sub(r"\W", "", pseudonym("iban", VALUES["iban"](r, False), KEY))
        assert iban.startswith("ZZ")
        assert mod97(iban) == 1
        assert pseudonym("ssn", VALUES["ssn"](r, False), KEY).startswith("999-0")
        assert re.fullmatch(
            r"(192\.0\.2|198\.51\.100|203\.0\.113)\.\d+", pseudonym("ipv4", VALUES["ipv4"](r, False), KEY)
        )
        assert pseudonym("ipv6", VALUES["ipv6"](r, False), KEY).startswith("2001:db8:")
        assert all(INVENTED.fullmatch(w) for w in pseudonym("name", "Ada Byron", KEY).split())
    assert re.fullmatch(r"<GITHUB_TOKEN_[0-9a-f]{6}>", pseudonym("github_token", "ghp_x", KEY))
    assert mask("email") == "<EMAIL>"


def test_by_hand():
    """HMAC-SHA-256 of kind, a zero byte and the value, as Python's own hmac and hashlib give it; its last eight hex digits."""
    import hashlib
    import hmac

    digest = hmac.new(KEY, b"email\0jo@acme.org", hashlib.sha256).hexdigest()
    assert pseudonym("email", "jo@acme.org", KEY) == f"person-{digest[-8:]}@example.com"


@pytest.mark.parametrize("key", [KEY, None])
@pytest.mark.parametrize("held_out", [False, True])
def test_twice_is_once(held_out, key):
    """On every labelled row: nothing is found in what replacing left, and all that was not personal is still there."""
    for text, _ in labelled(held_out, rounds=12, seed=3):
        found = find(text)
        done = replaced(text, found, key)
        assert find(done) == [], (text, done)
        kept = [
            text[a:b]
            for a, b in zip([0, *(e for _, _, e in found)], [*(s for _, s, _ in found), len(text)], strict=True)
        ]
        at = 0
        for part in kept:
            at = done.index(part, at) + len(part)


def test_other_finders_are_told():
    r = random.Random(2)
    for kind in set(VALUES) & set(KINDS):
        made = pseudonym(kind, VALUES[kind](r, False), KEY)
        if kind in (
            "name",
            "email",
            "phone",
            "card",
            "iban",
            "ssn",
            "ipv4",
            "ipv6",
            "mac",
            "address",
            "password",
            "nhs",
        ):
            assert recognised(made), (kind, made)
    assert not recognised("Ada Byron")
    assert not recognised("jo@acme.org")
