"""What may leave the log: checksums, published vectors, planted personal data, and what is refused."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrust.conf import read
from mltrust.contract import Contract, Feature, SchemaVersion, Scrub, Scrubbing
from mltrust.errors import ConfError
from mltrust.replay import masking
from mltrust.replay.masking import Key, Personal, anonymity, found, iban, luhn, mac, plan, problems
from tests.unit.conftest import SHIPPED

SECRET = b"0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("key", "data", "expected"),
    [
        (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
        (
            b"Jefe",
            b"what do ya want for nothing?",
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        (b"\xaa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
        (
            b"\xaa" * 131,
            b"Test Using Larger Than Block-Size Key - Hash Key First",
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
        ),
    ],
)
def test_pseudonyms_are_the_hmac_of_rfc_4231(key: bytes, data: bytes, expected: str) -> None:
    assert mac(key, data) == expected


def test_a_pseudonym_is_of_its_column_and_key_and_always_the_same() -> None:
    key = Key(SECRET)
    assert key.pseudonym("unit_id", "u1") == mac(SECRET, b"unit_id\x1fu1")
    assert key.pseudonym("unit_id", "u1") == Key(SECRET).pseudonym("unit_id", "u1")
    assert key.pseudonym("unit_id", "u1") != key.pseudonym("request_id", "u1")
    assert key.pseudonym("unit_id", "u1") != Key(SECRET[::-1]).pseudonym("unit_id", "u1")


def test_the_key_is_never_shown_and_a_short_one_is_refused() -> None:
    key = Key(SECRET)
    assert SECRET.decode() not in f"{key!r} {key!s} {key.key_id}"
    assert key.key_id == Key(SECRET).key_id != Key(SECRET[::-1]).key_id
    with pytest.raises(ConfError, match="has 5 bytes, expected 16 or more"):
        Key(b"short")


# Card numbers of the payment networks' own test pages, IBANs of the registry's examples.
CARDS = ("4111 1111 1111 1111", "5555555555554444", "378282246310005", "6011-1111-1111-1117")
IBANS = (
    "GB29 NWBK 6016 1331 9268 19",
    "DE89370400440532013000",
    "NO93 8601 1117 947",
    "MT84MALT011000012345MTLCAST001S",
)


@pytest.mark.parametrize("card", CARDS)
def test_cards_are_found_with_their_check_digit_only(card: str) -> None:
    assert Personal.CARD in found(f"paid with {card}.")
    wrong = card[:-1] + str((int(card[-1]) + 1) % 10)
    assert Personal.CARD not in found(f"paid with {wrong}.")


@pytest.mark.parametrize("number", IBANS)
def test_ibans_are_found_with_their_check_digits_only(number: str) -> None:
    assert Personal.IBAN in found(f"to {number} please")
    assert Personal.IBAN in found(f"to {number.lower()} please")
    other = "30" if number[2:4] != "30" else "31"
    assert Personal.IBAN not in found(f"to {number[:2]}{other}{number[4:]} please")


@settings(deadline=None)
@given(st.text("0123456789", min_size=1, max_size=18))
def test_exactly_one_check_digit_of_ten_satisfies_luhn(digits: str) -> None:
    assert sum(luhn(digits + str(check)) for check in range(10)) == 1


@settings(deadline=None)
@given(st.text("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=11, max_size=30))
def test_the_check_digits_of_any_account_make_it_an_iban(account: str) -> None:
    """ISO 7064: 98 minus the remainder with check digits 00."""
    check = 98 - int("".join(str(int(each, 36)) for each in f"{account}GB00")) % 97
    assert iban(f"GB{check:02d}{account}")
    assert not iban(f"GB{(check + 1) % 97 or 97:02d}{account}") or (check + 1) % 97 == check % 97


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to ann.bee+spam@mail.example.org", Personal.EMAIL),
        ("ÄNN@exämple.de", Personal.EMAIL),
        ("call +49 30 1234567", Personal.PHONE),
        ("(415) 555-0132", Personal.PHONE),
        ("tel 030/123 45 67", Personal.PHONE),
        ("+14155550132", Personal.PHONE),
        ("from 192.168.10.7", Personal.IP),
        ("from 2001:db8::ff00:42:8329", Personal.IP),
        ("http://192.168.10.7:8080/x", Personal.IP),
        ("06.12.34.56.78", Personal.PHONE),
        ("06-12-34-56-78", Personal.PHONE),
        ("4111 1111 1111 1111 12/27", Personal.CARD),
        ("4111 1111 1111 1111 123", Personal.CARD),
        ("4111 1111 1111 1111-2", Personal.CARD),
        ("2026-10-05 4111 1111 1111 1111", Personal.CARD),
        ("visa4111111111111111", Personal.CARD),
        ("card_4111111111111111", Personal.CARD),
        ("ref AB12 DE89 3704 0044 0532 0130 00", Personal.IBAN),
        ("DE89-3704-0044-0532-0130-00", Personal.IBAN),
        ("GB29 NWBK 6016 1331 9268 19 for rent", Personal.IBAN),
    ],
)
def test_personal_data_is_found_in_the_midst_of_text(text: str, kind: Personal) -> None:
    assert kind in found(text)


@pytest.mark.parametrize(
    "text",
    ["", "mobile", "emea", "2026-10-05", "05.10.2026", "12:30:59", "u3f2a9c11d0e8", "rId1", "version 1.2.3", "::",
     "999.1.1.1", "price 12.99", "1234567890123456", "a@b", "0.10", "3fa85f64-5717-4562-b3fc-2c963f66afa6",
     "2026-10-05 12:30", "05.10.2026 12:30", "sha4111111111111111f00d", "u266701629026-8",
     "u4111111111111111", "AB12 of the plain words that follow on"],
)  # fmt: skip
def test_plain_values_are_not_taken_for_personal_data(text: str) -> None:
    assert found(text) == frozenset()


def with_scrub(columns: dict[str, Scrub], k: int = 1) -> Contract:
    features = {
        "device": Feature("string", "public"),
        "age": Feature("long", "personal"),
        "price": Feature("double"),
    }
    return Contract("shop", {"v02": SchemaVersion()}, {"f01": features}, scrub=Scrubbing(columns, k))


KEYS = {name: Scrub("keep") for name in ("request_id", "item_id", "action")} | {"unit_id": Scrub("pseudonym")}


def test_text_that_is_not_listed_and_personal_numbers_are_refused_by_name() -> None:
    with pytest.raises(ConfError) as caught:
        plan(with_scrub(KEYS))
    message = str(caught.value)
    assert "features.device (text), features.age (personal) when rows leave" in message
    assert "price" not in message
    with pytest.raises(ConfError, match=r"request_id \(text\), item_id \(text\), unit_id \(text\)"):
        plan(replace(with_scrub({}), scrub=None))


def test_a_complete_plan_names_every_column_and_the_quasi_identifiers() -> None:
    device = Scrub("keep", quasi_identifier=True)
    found_plan = plan(with_scrub({**KEYS, "features.device": device, "features.age": Scrub("bucket", width=10)}, k=5))
    assert found_plan.columns["features.price"] == Scrub("keep")
    assert (found_plan.quasi_identifiers, found_plan.k) == (("features.device",), 5)
    assert found_plan.of("pseudonym") == ("unit_id",)


def test_a_policy_on_what_a_model_reads_is_a_problem() -> None:
    scrubbing = plan(
        with_scrub({**KEYS, "features.device": Scrub("keep"), "features.age": Scrub("bucket", width=10)})
    )
    assert problems(scrubbing, {"ranker 3": ["device", "price"]}) == []
    [problem] = problems(scrubbing, {"ranker 3": ["device", "age"], "ranker 4": ["price"]})
    assert problem.startswith("scrub: features.age is bucket, but ranker 3 reads it; expected keep")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"features.price": Scrub("pseudonym")}, "features.price: pseudonym is for string, this is a double"),
        ({"features.device": Scrub("bucket", width=1)}, "bucket is for long and double, this is a string"),
        ({"features.zip": Scrub("drop")}, "'features.zip' does not leave the log; expected of request_id"),
        ({"request_id": Scrub("drop")}, "request_id is drop; expected keep or pseudonym, as it tells rows apart"),
        ({"item_id": Scrub("truncate", length=3)}, "item_id is truncate; expected keep or pseudonym"),
    ],
)
def test_a_policy_that_does_not_fit_its_column_is_refused(columns: dict[str, Scrub], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_scrub(columns)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scrub("truncate"), "length is None, expected a number with policy 'truncate'"),
        (lambda: Scrub("keep", length=3), "length is 3, expected a number with policy 'truncate' and none with"),
        (lambda: Scrub("bucket", width=0), "width is 0, expected a number above 0"),
        (lambda: Scrubbing({}, 0), "k is 0, expected 1 or more"),
    ],
)
def test_a_policy_without_its_number_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_buckets_are_half_open_and_hold_negative_numbers_too() -> None:
    assert [masking.bucketed(value, 10) for value in (0, 9.9, 10, -0.1, -10)] == [0, 0, 10, -10, -10]
    assert masking.truncated("94107-1234", 3) == "941"
    assert masking.bucketed(1_700_000_000_000_000_003, 10) == 1_700_000_000_000_000_000


def test_a_page_shows_kept_columns_without_personal_data() -> None:
    scrubbing = plan(
        with_scrub({**KEYS, "features.device": Scrub("keep"), "features.age": Scrub("bucket", width=10)})
    )
    row = {
        "request_id": "r1",
        "unit_id": "u1",
        "champion": 0.5,
        "features": '{"device": "tv", "age": 31, "price": 2.5, "note": "?"}',
    }
    assert masking.shown(row, scrubbing) == {
        "request_id": "r1",
        "unit_id": None,
        "champion": 0.5,
        "features": '{"device": "tv", "price": 2.5}',
    }
    mail = {"request_id": "ann@example.org", "features": '{"device": "ann@example.org"}'}
    assert masking.shown(mail, scrubbing) == {"request_id": None, "features": "{}"}


def test_names_of_slices_are_of_columns_that_are_kept() -> None:
    scrubbing = plan(
        with_scrub({**KEYS, "features.device": Scrub("keep"), "features.age": Scrub("bucket", width=10)})
    )
    attributes = {"device": "features.device", "user": "unit_id", "age": "features.age", "version": "model_version"}
    assert masking.by_scrubbed(scrubbing, attributes, ["device", "version"], "sample.by") == []
    found_problems = masking.by_scrubbed(scrubbing, attributes, attributes, "slices")
    assert [each.partition(";")[0] for each in found_problems] == [
        "slices: user is unit_id, whose policy is pseudonym",
        "slices: age is features.age, whose policy is bucket",
    ]


def test_anonymity_counts_rows_of_rare_combinations() -> None:
    rows = ["a"] * 7 + ["b"] * 2 + ["c"] + ["d"] * 2
    sizes = Counter(Counter(rows).values())
    assert anonymity(sizes, 3) == (3, 4, 1, 5)
    assert anonymity({}, 3) == (3, 0, 0, 0)


def test_every_shipped_contract_says_what_becomes_of_what_leaves() -> None:
    contracts = [read(Contract, path)[0] for path in Path(SHIPPED, "contracts").glob("*.yaml")]
    assert contracts
    for each in contracts:
        assert plan(each) is not None
