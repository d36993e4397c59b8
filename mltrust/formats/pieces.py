"""What a file is taken apart into."""

from collections.abc import Mapping
from typing import NamedTuple

#: Of what cannot be read, as much is kept in a reject.
KEPT_BYTES = 65_536


class Broken(NamedTuple):
    """A file, or a part of one, that cannot be read: one reject."""

    reason: str
    raw: bytes


class Piece(NamedTuple):
    """A line of JSON, a record that is an object already, or what cannot be read."""

    line: bytes | None = None
    record: Mapping[str, object] | None = None
    broken: Broken | None = None


def broken(reason: str, raw: bytes) -> Piece:
    """A piece for what cannot be read, with the first bytes of it."""
    if len(raw) > KEPT_BYTES:
        reason = f"{reason} (the first {KEPT_BYTES:,} of {len(raw):,} bytes are kept)"
    return Piece(broken=Broken(reason, raw[:KEPT_BYTES]))
