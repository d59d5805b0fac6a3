"""STL, binary and text: as many triangles as the file announces, or refused."""

import pathlib

import numpy as np

from sam3d_jax.errors import Refused
from sam3d_jax.files.mesh_formats.surfaces import GREY, Surfaces, text_of, together
from sam3d_jax.render.mesh import Mesh

HEADER, TRIANGLE = 84, 50  # bytes
ROW = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def read(path: pathlib.Path, data: bytes, *, appearance: bool) -> Surfaces:
  """The triangles of an .stl file. Raises Refused (unreadable)."""
  if _is_text(data):
    corners = _text(text_of(data))
  else:
    corners = _binary(data)
  vertices = corners.reshape(-1, 3).astype(np.float64)
  faces = np.arange(len(vertices)).reshape(-1, 3)
  mesh = Mesh(vertices, faces)
  if appearance and len(faces):
    material = np.zeros(len(faces), np.int32)
    mesh = Mesh(vertices, faces, None, None, material, (GREY,)).with_appearance()
  return Surfaces(together([mesh]))


def _is_text(data: bytes) -> bool:
  """Whether a file is text: a binary one may begin with "solid" too."""
  if not data.lstrip()[:5].lower() == b"solid":
    return False
  if len(data) >= HEADER and len(data) == HEADER + TRIANGLE * _announced(data):
    return False
  return b"\0" not in data[:1000] or b"facet" in data[:1000].lower()


def _announced(data: bytes) -> int:
  return int.from_bytes(data[80:84], "little")


def _binary(data: bytes) -> np.ndarray:
  """(F, 3, 3) float32."""
  if len(data) < HEADER:
    raise Refused("unreadable", f"binary STL of {len(data)} bytes, its header announces {HEADER}")
  count = _announced(data)
  expected = HEADER + TRIANGLE * count
  spare = len(data) - expected
  # less than a triangle behind the last one is padding
  if spare < 0 or spare >= TRIANGLE:
    detail = f"binary STL of {len(data)} bytes, its header announces {expected}"
    raise Refused("unreadable", detail)
  return np.frombuffer(data, ROW, count, HEADER)["corners"]


def _text(text: str) -> np.ndarray:
  """(F, 3, 3) float64 of all solids of a text file, which may have any names."""
  facets, ended, inside = 0, True, False
  lengths: list[int] = []
  numbers: list[str] = []
  for line in text.splitlines():
    words = line.split()
    if not words:
      continue
    keyword = words[0].lower()
    # within a facet there are corners only, outside solids only: names are never taken for either
    if keyword == "vertex" and inside:
      numbers += words[1:4]
      lengths[-1] += 1
    elif keyword == "facet":
      facets += 1
      inside = True
      lengths.append(0)
    elif keyword in ("endfacet", "end") and inside:
      # "end loop" ends no facet
      inside = keyword == "end" and len(words) > 1 and words[1].lower() == "loop"
    elif keyword in ("endsolid", "end"):
      ended = True
    elif keyword == "solid":
      ended = False
  wrong = [length for length in lengths if length != 3]
  if wrong:
    raise Refused("unreadable", f"text STL: a facet of {wrong[0]} corners")
  if inside or not ended:
    raise Refused("unreadable", f"text STL of {facets} facets without its end: cut short")
  corners = np.fromiter(map(float, numbers), np.float64, len(numbers))
  if len(corners) != 9 * facets:
    raise Refused("unreadable", f"text STL: {len(corners)} numbers for {facets} facets")
  return corners.reshape(-1, 3, 3)
