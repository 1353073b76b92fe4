import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxapprox.rules._levels import parse_levels

bounds = st.none() | st.integers(-6, 12)


def written(bound: int | None) -> str:
    return "" if bound is None else str(bound)


@given(length=st.integers(1, 9), start=bounds, stop=bounds, step=st.none() | st.integers(1, 4))
def test_a_slice_selects_on_a_chain_what_it_selects_of_a_range(length, start, stop, step):
    # Python clamps a start before the beginning to 0, which shifts the steps: levels are not clamped
    if start is not None and start < -length and step not in (None, 1):
        start = -length
    text = f"{written(start)}:{written(stop)}" + ("" if step is None else f":{step}")
    levels = parse_levels(text)
    selected = [depth for depth in range(length) if levels.holds(depth, length - 1 - depth)]
    assert selected == list(range(length))[slice(start, stop, step)]


@given(length=st.integers(1, 9), index=st.integers(-9, 9))
def test_an_index_selects_on_a_chain_what_it_selects_of_a_range(length, index):
    levels = parse_levels(index)
    selected = [depth for depth in range(length) if levels.holds(depth, length - 1 - depth)]
    assert selected == ([range(length)[index]] if -length <= index < length else [])


@given(
    depth=st.integers(0, 9),
    height=st.integers(0, 9),
    pieces=st.lists(st.sampled_from(["0", "-1", "2:", ":-2"]), min_size=1),
)
def test_a_list_is_the_union_of_its_pieces(depth, height, pieces):
    whole = parse_levels(", ".join(pieces)).holds(depth, height)
    assert whole == any(parse_levels(piece).holds(depth, height) for piece in pieces)


def test_negative_levels_follow_the_height_where_branches_differ_in_length():
    # a short branch that ends at an output: depth 1 of a model 9 levels deep, and still the last level
    assert parse_levels("-1").holds(1, 0)
    assert not parse_levels("-1").holds(8, 1)
    assert parse_levels("1:-1").holds(1, 3)
    assert not parse_levels("1:-1").holds(1, 0)


@given(
    depth=st.integers(0, 20),
    height=st.integers(0, 20),
    text=st.sampled_from(["3:", "-2", "1:-1", "4", "0, -1", ":5"]),
)
def test_the_distance_is_zero_where_the_condition_holds(depth, height, text):
    levels = parse_levels(text)
    assert (levels.distance(depth, height) == 0) == levels.holds(depth, height)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2:", "2 or more"),
        (":3", "less than 3"),
        ("0, -1", "0 or -1 (height 0)"),
        ("1:-1", "1 or more and less than -1 (height 0)"),
        ("::2", "any, every 2 levels"),
        (4, "4"),
    ],
)
def test_in_words(text, words):
    assert str(parse_levels(text)) == words


@pytest.mark.parametrize("text", ["", "a", "1;2", "0,,1", "1:2:3:4", "::0", "::-1", "1.5", "0 -1"])
def test_what_is_no_condition(text):
    with pytest.raises(ValueError, match=r"neither|step"):
        parse_levels(text)
