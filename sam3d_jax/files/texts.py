"""Text files as programs and people leave them: any usual encoding, JSON, tables.

A byte-order mark decides (UTF-8, UTF-16, UTF-32); without one a text is UTF-8, or, where it is not,
what Windows and old tools wrote: Windows-1252, of which Latin-1 is the printable part.
"""

import codecs
from collections.abc import Iterator
import csv
import io
import json
import math
import pathlib
from typing import Any

# The longer mark first: that of UTF-32 begins with that of UTF-16.
MARKS = (
  (codecs.BOM_UTF8, "utf-8-sig"),
  (codecs.BOM_UTF32_LE, "utf-32"),
  (codecs.BOM_UTF32_BE, "utf-32"),
  (codecs.BOM_UTF16_LE, "utf-16"),
  (codecs.BOM_UTF16_BE, "utf-16"),
)
MAX_JSON = 1 << 28  # bytes of a file
SEPARATORS = (",", ";", "\t")  # of tables; the second where the comma is the decimal point

# What a cell begins with that a spreadsheet takes for a formula.
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class TextError(ValueError):
  """A text that is not what its reader wants; the message says why, but not of which file."""


def decode(data: bytes) -> str:
  """The text of a file's bytes. Raises TextError where a mark promises what does not follow."""
  for mark, encoding in MARKS:
    if data.startswith(mark):
      try:
        return data.decode(encoding)
      except UnicodeDecodeError as error:
        raise TextError(f"it begins as {encoding} and does not go on so ({error})") from error

  # UTF-16 without its mark has a zero in every other byte of what is plain in it.
  if b"\0" in data[:4]:
    little = data[1:2] == b"\0"
    encoding = "utf-16-le" if little else "utf-16-be"
  else:
    encoding = "utf-8"
  for candidate in (encoding, "cp1252"):
    try:
      return data.decode(candidate)
    except UnicodeDecodeError:
      pass
  return data.decode("latin-1")


def read(path: pathlib.Path) -> str:
  """The text of a file. Raises TextError, OSError."""
  return decode(path.read_bytes())


def parse_json(data: bytes | str) -> Any:
  """A JSON value. Raises TextError."""
  text = decode(data) if isinstance(data, bytes) else data
  try:
    value = json.loads(text)
    # Half a character, which JSON can state, fits into no other file.
    if "\\ud" in text.lower():
      json.dumps(value, ensure_ascii=False).encode()
    return value
  except UnicodeEncodeError as error:
    raise TextError("it holds half a character (\\uD8.. without its other half)") from error
  except ValueError as error:
    raise TextError(f"no JSON: {error}") from error
  # nested so deeply that no tool wrote it
  except RecursionError as error:
    raise TextError("no JSON that can be read: it is nested too deeply") from error


def read_json(path: pathlib.Path) -> Any:
  """The JSON value of a file. Raises TextError, also for a very large file; OSError."""
  size = path.stat().st_size
  if size > MAX_JSON:
    raise TextError(f"it has {size:,} bytes, at most {MAX_JSON:,} are read as JSON")
  return parse_json(path.read_bytes())


def is_blank(path: pathlib.Path) -> bool:
  """Whether a file holds nothing, or nothing but the zeros that a crash leaves of what was not yet
  on the disk. Raises OSError.
  """
  return not path.read_bytes().strip(b"\0 \r\n\t")


def read_own(path: pathlib.Path, *keys: str) -> dict[str, Any] | None:
  """The JSON object that a program of ours wrote; None if there is none, or a crash has left less
  than one with these keys: what is cut off counts as absent. Raises OSError of a failing disk.
  """
  try:
    value = read_json(path)
  except (FileNotFoundError, TextError):
    return None
  if not isinstance(value, dict) or not all(key in value for key in keys):
    return None
  return value


def read_rows(path: pathlib.Path, *keys: str) -> list[dict[str, Any]]:
  """The JSON objects with these keys in a file of one a line, such as a program appends; none if
  there is no file. Lines that a crash has cut off, or filled with zeros, are left out.
  """
  try:
    lines = path.read_bytes().split(b"\n")
  except FileNotFoundError:
    return []
  rows = []
  for line in lines:
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      continue
    if isinstance(row, dict) and all(key in row for key in keys):
      rows.append(row)
  return rows


def read_table(path: pathlib.Path) -> Iterator[tuple[int, dict[str, str]]]:
  """(line, column -> cell) of every row below the headings of a CSV file.

  Spaces around headings and cells do not count, nor do rows without any cell and cells that stand
  under no heading and are empty (commas at the end of a line). A cell that a row lacks is "".
  Raises TextError, OSError.
  """
  # Which character separates cells: what the first line says, or what is most frequent in it.
  text = read(path)
  first, _, _ = text.partition("\n")
  stated = first.strip().removeprefix("sep=")
  counts = [first.count(separator) for separator in SEPARATORS]
  separator = SEPARATORS[counts.index(max(counts))]
  if stated in SEPARATORS:
    separator = stated
    text = text[len(first) :]

  reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
  headings: list[str] | None = None
  try:
    for cells in reader:
      cells = [cell.strip() for cell in cells]
      if not any(cells):
        continue
      # The first line that holds something.
      if headings is None:
        headings = cells
        continue
      beyond = [cell for cell in cells[len(headings) :] if cell]
      if beyond:
        raise TextError(
          f"line {reader.line_num} has {len(cells)} cells under {len(headings)} headings"
        )
      row = dict.fromkeys(filter(None, headings), "")
      for heading, cell in zip(headings, cells, strict=False):
        if heading:
          row[heading] = cell
      yield reader.line_num, row
  except csv.Error as error:
    raise TextError(f"line {reader.line_num} is no CSV: {error}") from error


def cell(value: Any) -> Any:
  """A value as it may stand in a table: a text that spreadsheets would compute is marked as text.

  Numbers, also those that are written as texts, stay as they are.
  """
  if not isinstance(value, str) or not value.startswith(FORMULAS):
    return value
  try:
    float(value)
    return value
  except ValueError:
    return f"'{value}"


def number(text: str) -> float:
  """The finite number that a text states. Raises TextError."""
  try:
    found = float(text)
  except ValueError as error:
    raise TextError(f"{text!r} is not a number") from error
  if not math.isfinite(found):
    raise TextError(f"{text!r} is not a finite number")
  return found
