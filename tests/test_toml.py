import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxapprox.errors import RequestError
from fxapprox.toml import key_lines, read_toml, read_value, toml_key, toml_value, tomllib

DOCUMENT = '''\
version = 1   # = 2
[[rule]]
name = """
keep = 7
[[rule]]
"""
kind = [
  "linear",  # ]
  "conv2d",
]
# keep = 3
keep = 0.5
forward = { policy = "topk" }
grad_weight.policy = "pps"

  [[ rule ]]
"min_k" = 3
[rule.grad_input]
policy = 'pps'
[site."a.b"]
keep = 1
[site."a.b".facts]
op = "x"
'''


def test_every_table_and_key_has_its_line():
    lines = key_lines(DOCUMENT)
    assert lines == {
        ("version",): 1,
        ("rule", 0): 2,
        ("rule", 0, "name"): 3,
        ("rule", 0, "kind"): 7,
        ("rule", 0, "keep"): 12,
        ("rule", 0, "forward"): 13,
        ("rule", 0, "forward", "policy"): 13,
        ("rule", 0, "grad_weight"): 14,
        ("rule", 0, "grad_weight", "policy"): 14,
        ("rule", 1): 16,
        ("rule", 1, "min_k"): 17,
        ("rule", 1, "grad_input"): 18,
        ("rule", 1, "grad_input", "policy"): 19,
        ("site", "a.b"): 20,
        ("site", "a.b", "keep"): 21,
        ("site", "a.b", "facts"): 22,
        ("site", "a.b", "facts", "op"): 23,
    }


# surrogates cannot be written as UTF-8, in TOML or elsewhere
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = text | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)


@given(
    key=text,
    value=st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(text, v, max_size=3)),
)
def test_what_is_written_is_read_back(key, value):
    assert tomllib.loads(f"{toml_key(key)} = {toml_value(value)}\n") == {key: value}


def test_what_toml_cannot_hold():
    with pytest.raises(RequestError, match="cannot be written in TOML"):
        toml_value([None])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version = 1\nkeep = \n", "is not TOML: invalid value (r.toml:2)"),
        (b"a = 1\na = 2\n", "is not TOML: cannot overwrite a value (r.toml:2)"),
        (b"a = [1,\n", "(r.toml:1)"),
        (b"a = '\xff'", "is not text in UTF-8"),
    ],
)
def test_files_that_are_not_toml(tmp_path, content, message):
    path = tmp_path / "r.toml"
    path.write_bytes(content)
    with pytest.raises(RequestError) as caught:
        read_toml(path, "rules file")
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        read_toml(tmp_path / "none.toml", "rules file")
    with pytest.raises(RequestError, match="cannot be read: Is a directory"):
        read_toml(tmp_path, "rules file")


def test_windows_line_ends_and_byte_order_marks_are_read(tmp_path):
    path = tmp_path / "r.toml"
    path.write_bytes(b"\xef\xbb\xbfversion = 1\r\nkeep = 2\r\n")
    text, document = read_toml(path, "rules file")
    assert document == {"version": 1, "keep": 2}
    assert key_lines(text)["keep",] == 2


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("0.5", 0.5), ("true", True), ('"a b"', "a b"), ("none", "none")]
)
def test_a_single_value_is_read_as_in_a_file(text: str, value: object) -> None:
    assert read_value(text) == value
