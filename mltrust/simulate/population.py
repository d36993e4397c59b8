"""Who comes to the simulated service, and how likely a request of theirs ends in a purchase."""

from collections.abc import Mapping

#: Attributes that slices are made of, with the share of each value among units.
#: Latam is small so that a mismatch in it alone hardly moves the arms of all units.
ATTRIBUTES: Mapping[str, Mapping[str, float]] = {
    "device": {"mobile": 0.45, "desktop": 0.35, "tablet": 0.20},
    "region": {"emea": 0.45, "amer": 0.31, "apac": 0.20, "latam": 0.04},
}

#: Features that are numbers.
NUMBERS = ("age", "tenure_days", "similarity_score", "price")

#: Log-odds of a purchase per request, by device: far apart, as a reversal by device needs it.
BASE_LOG_ODDS: Mapping[str, float] = {"mobile": -2.6, "tablet": -1.2, "desktop": 0.2}

#: How much a similar item (score 1 against 0) adds to the log-odds.
SIMILARITY_SLOPE: Mapping[str, float] = {"mobile": 1.6, "tablet": 1.0, "desktop": 0.5}

#: The feature that the overfit model has learnt by heart.
UNSTABLE = "similarity_score"
