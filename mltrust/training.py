"""What the conf of a training set says: which logged predictions, with which features, label and split."""

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import ClassVar, Literal, NamedTuple

from mltrust.bounds import one_or_more

_ID = re.compile(r"[A-Za-z0-9_.-]+\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Label:
    """What became of a prediction: its outcomes named `outcome`, from its own time on for `window_days` of 24 hours.

    `any` is 1 where there is one; `sum`, `count` and `last` (by event time) are of their values. `by` says which
    outcomes are a prediction's: those of its request (of its item, where the outcome names one), or all those that
    name its unit. `missing`: a prediction without an outcome counts as zero, or is left out.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    outcome: str
    aggregate: Literal["any", "sum", "count", "last"]
    window_days: int
    missing: Literal["zero", "exclude"] = "zero"
    by: Literal["request", "unit"] = "request"

    def __post_init__(self) -> None:
        if not self.outcome:
            raise ValueError("outcome is '', expected the name of an outcome")
        one_or_more(self, "window_days")
        if self.aggregate == "any" and self.missing == "exclude":
            raise ValueError("missing is 'exclude', expected 'zero': of 'any' nothing but ones would be left")


@dataclass(frozen=True, slots=True)
class Split:
    """Which units are kept for testing: `test_share` of them, by a hash of the seed and the unit.

    A unit falls alike in every training set with the same seed.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    test_share: float
    seed: int = 0
    by: Literal["unit"] = "unit"

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1:
            raise ValueError(f"test_share is {self.test_share}, expected a share in (0, 1)")


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Production predictions of [start, end) that did not fail, their features as logged, and their label.

    Without `model_name` those of every model, without `model_versions` of every version; without `features` all of
    the contract's.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    training_set_id: str
    log: str
    start: date
    end: date
    label: Label
    description: str = ""
    model_name: str | None = None
    model_versions: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    split: Split | None = None

    def __post_init__(self) -> None:
        if not _ID.match(self.training_set_id):
            raise ValueError(
                f"training_set_id is {self.training_set_id!r}, expected letters, digits, _, - and ., as it names a "
                "partition"
            )
        if self.end <= self.start:
            raise ValueError(f"end is {self.end}, expected a day after start {self.start}: days are [start, end)")
        if self.model_versions is not None and self.model_name is None:
            raise ValueError("model_versions are given without model_name; expected the model that they belong to")
        for name in ("model_versions", "features"):
            given = getattr(self, name)
            if given is not None and not given:
                raise ValueError(f"{name} is empty; leave it out to take all")
            if twice := [each for each, n in Counter(given or ()).items() if n > 1]:
                raise ValueError(f"{name}: {', '.join(twice)} given twice")

    def problems(self, features: Collection[str]) -> list[str]:
        """What does not fit the features of the log's contract."""
        return [
            f"features: {name!r} is no feature of log {self.log!r}; "
            + (f"did you mean {near[0]!r}?" if near else f"expected some of {', '.join(features)}")
            for name in self.features or ()
            if name not in features
            for near in [difflib.get_close_matches(name, features, 1)]
        ]

    def chosen(self, features: Collection[str]) -> tuple[str, ...]:
        """The features of the set out of all of the contract's, in the contract's order."""
        return tuple(name for name in features if self.features is None or name in self.features)


class Exported(NamedTuple):
    """What an export found; the observation is the logged prediction.

    `n_immature` were left out as their window is not over by as_of, `n_missing` as they have no label. Of the
    `n_rows` exported, `n_followed` have an outcome, `n_positive` a label above 0, and `n_no_fold` no unit by which
    to split. Means and shares are nan of no rows.
    """

    n_rows: int
    n_immature: int
    n_missing: int
    n_followed: int
    n_positive: int
    n_train: int
    n_test: int
    n_no_fold: int
    label_mean: float
    null_shares: Mapping[str, float]
    content_hash: str


#: A SHA-256 is added up in so many parts of 32 bits, whose sums hold 2**31 rows.
N_PARTS = 8


def content_hash(n_rows: int, sums: Sequence[int]) -> str:
    """32 hex digits that name the content of rows, from the sums of the N_PARTS parts of their hashes.

    It depends neither on their order nor on how they were partitioned. MLflow admits 36 characters.
    """
    return hashlib.sha256(":".join(map(str, (n_rows, *sums))).encode()).hexdigest()[:32]
