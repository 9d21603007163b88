"""Names as text: every name comes back, and nothing in it can end a line, a string or an XML element."""

import json
import os
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from avarc_cli import names, page

FILE_NAMES = st.binary(max_size=24).map(os.fsdecode) | st.text(max_size=12).filter(str.isprintable)
TRICKY = st.text(st.sampled_from("\\xuUdcf05c1\udcff\n\x1b\u2028é"), max_size=16)


@given(FILE_NAMES | TRICKY)
@example("\\xff")
@example("\\x5cxff")
@example("\\\\xff\udcff\\x5")
@example("\\udcff")
@example("\\U0001f600\\U00110000")
def test_a_name_comes_back_from_its_text_and_its_line(name):
    for text in (names.to_text(name), names.to_line(name)):
        assert names.from_text(text) == name
        text.encode()


@given(FILE_NAMES | TRICKY)
def test_a_line_is_one_line_without_control_characters(name):
    line = names.to_line(name)
    assert line.splitlines() in ([], [line])
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202a\u202e\u2066\u200b\ufeff" for c in line)


@pytest.mark.parametrize("name", ["caf\u00e9 \u5b57\u3000x", "a\\b\\x", "\u0645\u06cc\u200c\u062e", "1\u00a0000"])
def test_ordinary_names_are_written_as_they_are(name):
    assert names.to_text(name) == names.to_line(name) == name


@pytest.mark.parametrize(
    ("name", "line"),
    [("caf\udce9", "caf\\udce9"), ("a\nb", "a\\x0ab"), ("\x1b[31m", "\\x1b[31m"), ("\u202eevil", "\\u202eevil")],
)
def test_what_cannot_be_shown_is_escaped_as_in_python(name, line):
    assert names.to_line(name) == line


@given(st.recursive(FILE_NAMES | st.integers() | st.none(), lambda x: st.lists(x) | st.dictionaries(FILE_NAMES, x)))
def test_json_holds_valid_unicode_on_one_line_and_gives_names_back(value):
    text = names.to_json(value)
    assert text.isascii()
    assert "\n" not in text
    json.dumps(json.loads(text), ensure_ascii=False).encode()
    assert names.from_json(text) == value


@given(st.text(st.characters(), max_size=12) | FILE_NAMES)
def test_escaped_names_keep_markup_well_formed(name):
    element = ElementTree.fromstring(f'<text title="{page.text(name)}">{page.text(name)}</text>')
    assert element.get("title") == (element.text or "") == names.to_line(name)
