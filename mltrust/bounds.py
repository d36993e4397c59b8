"""Bounds of the numbers of a spec."""


def one_or_more(spec: object, *names: str) -> None:
    """Raises ValueError, which names it, where one of the spec's numbers is below 1."""
    for name in names:
        if getattr(spec, name) < 1:
            raise ValueError(f"{name} is {getattr(spec, name)}, expected 1 or more")
