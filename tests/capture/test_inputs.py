"""Example inputs from text."""

from __future__ import annotations

import pytest
import torch

from fxapprox.capture.inputs import parse_input, parse_inputs
from fxapprox.errors import RequestError


def test_shapes_dtypes_and_ranges() -> None:
    assert parse_input("32x3x8x8").shape == (32, 3, 8, 8)
    assert parse_input("32x3x8x8").dtype == torch.float32
    assert parse_input("5").shape == (5,)
    assert parse_input("scalar:bfloat16").shape == ()
    ids = parse_input("200:int64:3..5")
    assert ids.dtype == torch.int64
    assert set(ids.tolist()) == {3, 4, 5}, "both ends are included"
    assert set(parse_input("200:int32").tolist()) == {0, 1}
    assert parse_input("4:bool").dtype == torch.bool
    unit = parse_input("200:float64:2..3")
    assert unit.dtype == torch.float64
    assert 2 <= unit.min() <= unit.max() <= 3
    assert parse_input("2:complex64").dtype == torch.complex64


def test_keyword_and_nested_inputs_and_their_seed() -> None:
    texts = ["2x3", "ids=2x4:int64:0..9", "batch.mask=2x4:bool", "batch.extra.x=1"]
    inputs = parse_inputs(texts)
    assert [x.shape for x in inputs.args] == [(2, 3)]
    assert inputs.kwargs is not None
    assert inputs.kwargs["ids"].shape == (2, 4)
    assert inputs.kwargs["batch"]["extra"]["x"].shape == (1,)
    assert torch.equal(parse_inputs(texts).args[0], inputs.args[0])
    assert not torch.equal(parse_inputs(texts, seed=1).args[0], inputs.args[0])
    assert parse_inputs(["3"]).kwargs is None


def test_making_inputs_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    parse_inputs(["3x3", "4:int64", "x=2:float64:0..1"])
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is no shape"),
        ("3x", "is no shape"),
        ("3xa", "is no shape"),
        ("-3x4", "is no shape"),
        ("3,4", "is no shape"),
        ("0x4", "size of 0"),
        ("3x4:int46", "did you mean 'int64'?"),
        ("3x4:", "unknown dtype"),
        ("3:", "unknown dtype"),
        ("3:int64:5", "is no range"),
        ("3:int64:5..1", "is no range"),
        ("3:int64:a..b", "is no range"),
        ("3:int8:0..300", "does not fit int8"),
        ("3:int64:0..1.5", "does not fit int64"),
        ("99999999x99999999x99", "cannot be made"),
        ("a b=3", "is not a name"),
    ],
)
def test_what_is_not_an_input(text: str, part: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_inputs([text])
    assert part in str(caught.value)


def test_names_may_not_collide() -> None:
    with pytest.raises(RequestError, match="twice"):
        parse_inputs(["x=2", "x=3"])
    with pytest.raises(RequestError, match="already a tensor"):
        parse_inputs(["x=2", "x.y=3"])
