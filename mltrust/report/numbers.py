"""Numbers as people read them."""

from math import isnan


def number(value: float) -> str:
    """Four digits, or a dash for what is undefined."""
    return "–" if isnan(value) else f"{value:.4g}"
