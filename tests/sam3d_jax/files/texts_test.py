"""Texts, JSON and tables are read in whatever encoding programs left them."""

import pytest

from sam3d_jax.files import texts

NAMES = "Atelier S\u00fcd \u00a9 2019"


@pytest.mark.parametrize(
  "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"]
)
def test_a_text_reads_alike_in_every_usual_encoding(tmp_path, encoding):
  path = tmp_path / "a.license"
  path.write_bytes(NAMES.encode(encoding))
  assert texts.read(path) == NAMES


def test_quotes_of_windows_are_quotes():
  assert texts.decode(b"\x93CC-BY\x94 \x96 4.0") == "\u201cCC-BY\u201d \u2013 4.0"


def test_a_mark_that_lies_is_named():
  with pytest.raises(texts.TextError, match="begins as utf-8-sig"):
    texts.decode(b"\xef\xbb\xbf\xff\xff")


@pytest.mark.parametrize("data", [b'{"a": 1,}', b"", b"\xef\xbb\xbf", b"[" * 100_000, b'"\\ud800"'])
def test_what_is_no_json_is_named(data):
  with pytest.raises(texts.TextError):
    texts.parse_json(data)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_json_reads_with_a_mark_and_in_utf_16(encoding):
  assert texts.parse_json('{"a": "\u00fc"}'.encode(encoding)) == {"a": "\u00fc"}


@pytest.mark.parametrize(
  "text",
  [
    "left,right\na,b\nc,\n",
    "\ufeffleft,right\r\na,b\r\nc,\r\n",
    "left;right\na;b\nc\n",
    "left\tright\na\tb\nc\n",
    "sep=;\nleft;right\na;b\nc\n",
    "left , right,,\n a,b,,\n\n,,\nc,,,\n",
    '"left","right"\n"a","b"\nc\n',
  ],
)
def test_a_table_reads_as_its_plain_form(tmp_path, text):
  path = tmp_path / "t.csv"
  path.write_bytes(text.encode())
  rows = [row for _, row in texts.read_table(path)]
  assert rows == [{"left": "a", "right": "b"}, {"left": "c", "right": ""}]


def test_a_cell_beyond_the_headings_is_named_by_its_line(tmp_path):
  path = tmp_path / "t.csv"
  path.write_text("a,b\n1,2\n1,2,3\n")
  with pytest.raises(texts.TextError, match="line 3 has 3 cells under 2 headings"):
    list(texts.read_table(path))


@pytest.mark.parametrize("text", ["None", "nan", "inf", "", "5,5", "high"])
def test_what_is_no_finite_number_is_named(text):
  with pytest.raises(texts.TextError, match="is not a"):
    texts.number(text)


@pytest.mark.parametrize(
  "text", ["=1+1", "+cmd|' /C calc'!A0", "-a", "@SUM(A1)", "\t=1", "\uff1d1"]
)
def test_a_cell_that_a_spreadsheet_would_compute_is_marked_as_text(text):
  assert texts.cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-1.5", "+2", "1e-3", "cup", "", 3, -0.5, None, "a=b"])
def test_numbers_and_plain_texts_stay_in_their_cells(value):
  assert texts.cell(value) == value


@pytest.mark.parametrize(
  "left", [b"", b"\0" * 64, b'{"a": 1', b"[1]", b"7", b'{"b": 1}', b"\xff\xfe{"]
)
def test_what_a_crash_left_of_an_own_file_counts_as_absent(tmp_path, left):
  path = tmp_path / "own.json"
  assert texts.read_own(path, "a") is None
  path.write_bytes(left)
  assert texts.read_own(path, "a") is None
  path.write_bytes(b'{"a": 1}')
  assert texts.read_own(path, "a") == {"a": 1}


def test_rows_that_are_not_whole_are_left_out(tmp_path):
  path = tmp_path / "rows.jsonl"
  assert texts.read_rows(path) == []
  path.write_bytes(b'{"a": 1}\n{"a"\n\0\0\0\n[]\n\xff\n{"b": 2}\n{"a": 3}')
  assert texts.read_rows(path, "a") == [{"a": 1}, {"a": 3}]


def test_a_file_of_zeros_is_blank(tmp_path):
  path = tmp_path / "file"
  for content, blank in ((b"", True), (b"\0\0\n", True), (b"\0x", False)):
    path.write_bytes(content)
    assert texts.is_blank(path) == blank
