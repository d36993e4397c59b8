"""Names of slices."""

from hypothesis import given
from hypothesis import strategies as st

from mltrust.slices import OVERALL, Slicing, name_slice


def test_overall_is_two_empty_texts() -> None:
    assert tuple(name_slice({})) == OVERALL == ("", "")
    assert str(name_slice({})) == "overall"


def test_attributes_are_sorted_and_values_follow_them() -> None:
    found = name_slice({"region": "emea", "device": "ios"})
    assert tuple(found) == ("device x region", "ios x emea")
    assert str(found) == "device x region:ios x emea"


values = st.text(st.sampled_from("ax \\"), max_size=6)


@given(values, values, values, values)
def test_two_different_slices_never_share_a_name(a: str, b: str, c: str, d: str) -> None:
    same = (a, b) == (c, d)
    assert (name_slice({"p": a, "q": b}) == name_slice({"p": c, "q": d})) == same


def test_each_attribute_is_a_set_of_its_own_by_default_and_none_is_declared_twice() -> None:
    assert Slicing({"b": "features.b", "a": "features.a"}).declared() == (("b",), ("a",))
    crossed = Slicing({"b": "b", "a": "a"}, (("b", "a"), ("a", "b"), ("a",)))
    assert crossed.declared() == (("a", "b"), ("a",))
