"""What may leave the log: personal data in text found and stopped, keyed pseudonyms, groups of k.

Nothing here logs a value or a key; what is reported is a kind, a column and a count.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from ipaddress import ip_address
from math import floor
from typing import NamedTuple

from mltrust.contract import Contract, Policy, Scrub
from mltrust.errors import ConfError

#: Between the name of a column and a value, so that equal values of two columns have two pseudonyms.
_SEPARATOR = "\x1f"
_MIN_KEY_BYTES = 16


class Personal(StrEnum):
    """Kinds of personal data that are looked for in text."""

    EMAIL = "e-mail"
    PHONE = "phone"
    CARD = "card"
    IBAN = "IBAN"
    IP = "IP address"


class Key:
    """The secret of pseudonyms. It is never shown; `key_id` says which one it was."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) < _MIN_KEY_BYTES:
            raise ConfError(f"the key of pseudonyms has {len(secret)} bytes, expected {_MIN_KEY_BYTES} or more")
        self._secret = secret

    def __repr__(self) -> str:
        return f"Key({self.key_id})"

    @property
    def key_id(self) -> str:
        """16 hex digits that name the key and do not give it away."""
        return mac(self._secret, b"mltrust key id")[:16]

    def pseudonym(self, column: str, value: str) -> str:
        """HMAC-SHA256 of column and value, 64 hex digits: the same in every export with this key."""
        return mac(self._secret, f"{column}{_SEPARATOR}{value}".encode())


def mac(key: bytes, message: bytes) -> str:
    """HMAC-SHA256 (RFC 2104, test vectors in RFC 4231) as hex digits."""
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def found(text: str) -> frozenset[Personal]:
    """The kinds of personal data in a text. Candidates by form, then by checksum where the kind has one."""
    return frozenset(kind for kind, finder in _FINDERS.items() if any(finder(text)))


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = (int(each) * (1 + at % 2) for at, each in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def iban(text: str) -> bool:
    """Whether a text without spaces is an IBAN by its check digits: mod 97 is 1 (ISO 13616, ISO/IEC 7064)."""
    if not re.fullmatch(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}", text, re.ASCII):
        return False
    return int("".join(str(int(each, 36)) for each in text[4:] + text[:4])) % 97 == 1


_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
# International, or national in groups: a run of digits alone is more often an id.
_PHONE = re.compile(
    r"(?<![\w-])(?<!\d\.)(?:\+\d[\d ()./-]{6,18}\d|\(?\d{2,4}\)?(?:[ ./-]\d{2,6}){2,4})(?![\w-]|\.\d)"
)
# What goes on in the same manner is no date: 06.12.34.56.78 is a phone.
_DATE = re.compile(r"\d{1,4}([./-])\d{1,2}\1\d{1,4}(?!\d|\1\d)")
# Groups of digits. After letters they are an id, unless the letters name a card (`visa4111...`).
_DIGITS = re.compile(
    r"(?<!\w)(?<!\d\.)(?:(?:visa|mastercard|amex|card|pan|cc)_?)?(\d+(?:[ -]\d+)*)(?!\w|\.\d)", re.IGNORECASE
)
# Every start by itself: what looks like one may hide the next.
_IBAN = re.compile(r"(?=\b([A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30})\b)")
_IP = re.compile(
    r"(?<![\w:])(?<!\d\.)(?:(\d{1,3}(?:\.\d{1,3}){3})(?::\d{1,5})?|([0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}))"
    r"(?![\w:]|\.\d)"
)


def _emails(text: str) -> Iterator[bool]:
    return (True for _ in _EMAIL.finditer(text)) if "@" in text else iter(())


def _phones(text: str) -> Iterator[bool]:
    for each in _PHONE.finditer(text):
        digits = re.sub(r"\D", "", each[0])
        yield 8 <= len(digits) <= 15 and not _DATE.match(each[0])


def _cards(text: str) -> Iterator[bool]:
    """Neighbouring groups that make 13 to 19 digits: a date or a number may stand before or after."""
    for each in _DIGITS.finditer(text):
        groups = re.findall(r"\d+", each[1])
        for first in range(len(groups)):
            for last in range(first, len(groups)):
                digits = "".join(groups[first : last + 1])
                if len(digits) > 19:
                    break
                yield len(digits) >= 13 and digits[0] in "23456" and luhn(digits)


def _ibans(text: str) -> Iterator[bool]:
    for each in _IBAN.finditer(text):
        joined = re.sub("[ -]", "", each[1]).upper()
        # What follows may be the next word, so that the length is that of the country.
        yield iban(joined[: _IBAN_LENGTHS.get(joined[:2], len(joined))])


def _ips(text: str) -> Iterator[bool]:
    for each in _IP.finditer(text):
        try:
            address = ip_address(each[1] or each[2])
        except ValueError:
            continue
        yield not (address.version == 6 and each[0].count(":") == len(each[0]))


#: By country (ISO 13616, the registry of SWIFT).
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS", 23: "AE GI IL IQ TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR", 27: "FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB PL SV", 29: "BR EG PS QA UA",
        30: "JO KW MU", 31: "MT SC", 32: "LC",
    }.items()
    for country in countries.split()
}  # fmt: skip
_FINDERS: Mapping[Personal, Callable[[str], Iterable[bool]]] = {
    Personal.EMAIL: _emails,
    Personal.PHONE: _phones,
    Personal.CARD: _cards,
    Personal.IBAN: _ibans,
    Personal.IP: _ips,
}


class Plan(NamedTuple):
    """What becomes of every column of a set, by name (`unit_id`, `features.device`)."""

    columns: Mapping[str, Scrub]
    quasi_identifiers: tuple[str, ...]
    k: int

    def of(self, *policies: Policy) -> tuple[str, ...]:
        """The columns with one of the policies."""
        return tuple(name for name, scrub in self.columns.items() if scrub.policy in policies)


def plan(contract: Contract) -> Plan:
    """The scrubbing of a log's contract, complete: what it does not list is kept where nothing speaks against it.

    Raises ConfError that names the text and the personal or sensitive features that it does not list.
    """
    given = contract.scrub.columns if contract.scrub is not None else {}
    types, sensitivities = contract.scrubbed_types(), contract.sensitivities()
    unlisted = []
    for name, kind in types.items():
        sensitivity = sensitivities.get(name.removeprefix("features."), "internal")
        why = "text" if kind == "string" else sensitivity
        if name not in given and why in ("text", "personal", "sensitive"):
            unlisted.append(f"{name} ({why})")
    if unlisted:
        raise ConfError(
            f"contract of log {contract.log!r}: scrub.columns does not say what becomes of {', '.join(unlisted)} "
            "when rows leave the log; expected keep, drop, null, pseudonym, truncate or bucket for each"
        )
    columns = {name: given.get(name, Scrub("keep")) for name in types}
    quasi = tuple(name for name, scrub in columns.items() if scrub.quasi_identifier)
    return Plan(columns, quasi, contract.scrub.k if contract.scrub is not None else 1)


def by_scrubbed(scrubbing: Plan, attributes: Mapping[str, str], names: Iterable[str], what: str) -> list[str]:
    """Slice attributes whose raw values would leave by their names: those of columns that are not kept."""
    return [
        f"{what}: {name} is {attributes[name]}, whose policy is {scrubbing.columns[attributes[name]].policy}; "
        "expected a column that is kept, as its values stand in tables and on pages"
        for name in names
        if attributes[name] in scrubbing.columns and scrubbing.columns[attributes[name]].policy != "keep"
    ]


def shown(example: Mapping[str, object], scrubbing: Plan) -> dict[str, object]:
    """A row of the log as a page may show it: kept columns only, and no text with personal data in it."""
    features = json.loads(str(example["features"]))
    kept = {name: value for name, value in features.items() if _may_be_shown(f"features.{name}", value, scrubbing)}
    own = {
        name: value if name not in scrubbing.columns or _may_be_shown(name, value, scrubbing) else None
        for name, value in example.items()
    }
    return {**own, "features": json.dumps(kept)}


def _may_be_shown(column: str, value: object, scrubbing: Plan) -> bool:
    scrub = scrubbing.columns.get(column)
    return scrub is not None and scrub.policy == "keep" and not (isinstance(value, str) and found(value))


def problems(scrubbing: Plan, inputs: Mapping[str, Iterable[str]]) -> list[str]:
    """Policies on features that a model reads, by model: its scores could not be reproduced any more."""
    return [
        f"scrub: features.{feature} is {scrubbing.columns[f'features.{feature}'].policy}, but {model} reads it; "
        "expected keep, as its scores cannot be reproduced from anything else"
        for model, features in inputs.items()
        for feature in features
        if f"features.{feature}" in scrubbing.columns and scrubbing.columns[f"features.{feature}"].policy != "keep"
    ]


def truncated(text: str, length: int) -> str:
    """The first characters of a text."""
    return text[:length]


def bucketed(value: float, width: float) -> float:
    """The lower end of the interval [i·width, (i + 1)·width) that holds the value."""
    if isinstance(value, int) and width == int(width):
        return value // int(width) * int(width)  # exact beyond 2^53
    return floor(value / width) * width


class Anonymity(NamedTuple):
    """How well rows hide among one another, by their quasi-identifiers.

    `smallest` is the number of units of the rarest of the `n_groups` combinations; `n_below` units are in
    combinations of fewer than k.
    """

    k: int
    n_groups: int
    smallest: int
    n_below: int


def anonymity(sizes: Mapping[int, int], k: int) -> Anonymity:
    """The anonymity of a set in which `sizes[s]` combinations have s units each (Sweeney 2002)."""
    below = sum(size * n for size, n in sizes.items() if size < k)
    return Anonymity(k, sum(sizes.values()), min(sizes, default=0), below)


class Exported(NamedTuple):
    """What an export found; the observation is the logged prediction.

    Of `n_drawn` predictions `n_stopped` stayed behind as their text holds personal data (`stopped` by column and
    kind), and `n_rare` as fewer than k share their quasi-identifiers. `n_weights` is of different weights.
    """

    n_drawn: int
    n_rows: int
    n_stopped: int
    n_rare: int
    n_labelled: int
    n_weights: int
    stopped: Mapping[str, int]
    strata: Mapping[str, int]
    anonymity: Anonymity
    content_hash: str

    @property
    def n_left_out(self) -> int:
        return self.n_stopped + self.n_rare
