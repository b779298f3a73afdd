import pytest

from swatool.json_text import JsonError, parse_json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, -0.5, null, true, "b"]}', {"a": [1, -0.5, None, True, "b"]}),
        ("1e999", float("inf")),
        ("9" * 400, int("9" * 400)),
    ],
)
def test_what_is_read(text, value):
    assert parse_json(text.encode()) == value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{,}", "it is no JSON, see line 1, column 2"),
        (b"1\n2", "it is no JSON, see line 2, column 1"),
        (b"\xef\xbb\xbf1", "it is no JSON, see line 1, column 1"),
        (b"\xff", "it is not UTF-8, near byte 0"),
        (b"[" * 100_000, "it is nested too deep"),
        (b'{"a":' * 100_000, "it is nested too deep"),
        (b"9" * 401, "it has a number of 401 digits"),
        (b"0." + b"9" * 5000, "it has a number of 5,002 digits"),
        (b'{"a": 1, "\\u0061": 2}', "it has the same key twice: 'a'"),
        (b'{"\x1b[2J": 1}', "it is no JSON, see line 1, column 3"),
        (b'{"\\u001b": 1, "\\u001b": 2}', r"it has the same key twice: '\x1b'"),
        (b"[1, 2, {}]", "it has more than 3 values"),
    ],
)
def test_what_is_refused_and_in_which_words(data, said):
    with pytest.raises(JsonError) as caught:
        parse_json(data, most=3 if "3 values" in said else 500_000)
    assert str(caught.value) == said


def test_long_texts_of_wide_letters_are_refused_before_they_are_decoded():
    wide = '"\U0001f600"'.encode()
    assert parse_json(b" " * (4 << 20) + b'"a"') == "a"
    with pytest.raises(JsonError, match="4,194,310 bytes and letters beyond ASCII"):
        parse_json(b" " * (4 << 20) + wide)
