"""STL, binary and text: as many triangles as the file announces, or refused."""

import pathlib

import numpy as np

from sam3d_jax.errors import Refused
from sam3d_jax.files import texts
from sam3d_jax.files.mesh_formats import surfaces
from sam3d_jax.files.mesh_formats.surfaces import GREY, Surfaces
from sam3d_jax.render.mesh import Mesh

HEADER, TRIANGLE = 84, 50  # bytes
COUNT_AT = 80
ROW = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def read(path: pathlib.Path, data: bytes, *, appearance: bool) -> Surfaces:
  """The triangles of an .stl file. Raises Refused (unreadable)."""
  if _is_text(data):
    corners_F33 = _text(texts.decode(data))
  else:
    corners_F33 = _binary(data)
  # the format has no vertices that faces share
  vertices = corners_F33.reshape(-1, 3).astype(np.float64)
  faces = np.arange(len(vertices)).reshape(-1, 3)
  mesh = Mesh(vertices, faces)
  if appearance and len(faces):
    mesh = surfaces.in_one(mesh, GREY)
  return Surfaces(mesh)


def _is_text(data: bytes) -> bool:
  """Whether a file is text: a binary one may begin with "solid" too."""
  first_word = data.lstrip()[:5].lower()
  if first_word != b"solid":
    return False
  if len(data) >= HEADER and len(data) == _announced(data):
    return False
  beginning = data[:1000].lower()
  return b"\0" not in beginning or b"facet" in beginning


def _announced(data: bytes) -> int:
  """Bytes that the header of a binary file announces."""
  stored = data[COUNT_AT:HEADER]
  count = int.from_bytes(stored, "little")
  return HEADER + TRIANGLE * count


def _binary(data: bytes) -> np.ndarray:
  """(F, 3, 3) float32."""
  # a header that is cut short announces nothing
  expected = HEADER
  if len(data) >= HEADER:
    expected = _announced(data)
  spare = len(data) - expected
  # less than a triangle behind the last one is padding
  if not 0 <= spare < TRIANGLE:
    detail = f"binary STL of {len(data)} bytes, its header announces {expected}"
    raise Refused("unreadable", detail)
  count = (expected - HEADER) // TRIANGLE
  rows = np.frombuffer(data, ROW, count, HEADER)
  return rows["corners"]


def _text(text: str) -> np.ndarray:
  """(F, 3, 3) float64 of all solids of a text file, which may have any names."""
  in_facet, in_solid = False, False
  lengths: list[int] = []  # corners of every facet
  numbers: list[str] = []
  for line in text.splitlines():
    words = line.split()
    if not words:
      continue
    keyword = words[0].lower()
    second = words[1].lower() if len(words) > 1 else ""

    # Corners count within facets only, and solids outside of them: names are taken for neither.
    if keyword == "facet":
      in_facet = True
      lengths.append(0)
    elif in_facet:
      if keyword == "vertex":
        numbers += words[1:4]
        lengths[-1] += 1
      elif keyword == "endfacet" or (keyword == "end" and second != "loop"):
        in_facet = False
    elif keyword == "solid":
      in_solid = True
    elif keyword in ("endsolid", "end"):
      in_solid = False

  # Whether that was all of it.
  for length in lengths:
    if length != 3:
      raise Refused("unreadable", f"text STL: a facet of {length} corners")
  facets = len(lengths)
  if in_facet or in_solid:
    raise Refused("unreadable", f"text STL of {facets} facets without its end: cut short")
  if len(numbers) != 9 * facets:
    raise Refused("unreadable", f"text STL: {len(numbers)} numbers for {facets} facets")
  corners = np.fromiter(map(float, numbers), np.float64, len(numbers))
  return corners.reshape(-1, 3, 3)
