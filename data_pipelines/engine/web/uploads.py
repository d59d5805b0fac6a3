"""Files that people send and that are served to them.

A file is taken for what is in it, never for what its name or its sender says: a mask is an image
that decodes as PNG, and is written anew; a mesh is a GLB that the project's own reader reads whole.
Kept files are served as bytes to download, which no browser runs.
"""

import io
import pathlib
import re
import tempfile

from fastapi import HTTPException, Request, Response
import numpy as np
from PIL import Image

from data_pipelines.engine import adding
from data_pipelines.engine.blobs import is_digest
from data_pipelines.engine.project import Project
from sam3d_jax.errors import Refused
from sam3d_jax.files import meshes

MIB = 1 << 20
LARGEST = {"mask": 16 * MIB, "mesh": 128 * MIB}  # bytes of an upload
MAX_PIXELS = 64 * MIB
PNG_START = b"\x89PNG\r\n\x1a\n"
SIZE_AT = (16, 20)  # bytes of a PNG at which its width and height stand
BYTES = "application/octet-stream"
TYPES = (
  (PNG_START, "image/png"),
  (b"\xff\xd8", "image/jpeg"),
  (b"glTF", "model/gltf-binary"),
)


async def read_body(request: Request, kind: str) -> bytes:
  """The body, read until it is whole or too large. Raises HTTPException."""
  if kind not in LARGEST:
    raise HTTPException(404, f"kind {kind!r} is not one of {', '.join(LARGEST)}")
  most = LARGEST[kind]
  too_large = HTTPException(413, f"a {kind} has at most {most // MIB} MiB: send a smaller one")
  stated = request.headers.get("content-length", "0")
  if not re.fullmatch(r"[0-9]{1,18}", stated) or int(stated) > most:
    raise too_large
  # whatever was stated, no more than that is kept
  parts, size = [], 0
  async for part in request.stream():
    size += len(part)
    if size > most:
      raise too_large
    parts.append(part)
  return b"".join(parts)


def checked(kind: str, content: bytes) -> bytes:
  """The bytes to keep. Raises HTTPException for what is not of that kind."""
  if kind == "mask":
    return _mask(content)
  return _mesh(content)


def _mask(content: bytes) -> bytes:
  """A mask as PNG of our own making, white on black."""
  if not content.startswith(PNG_START):
    raise HTTPException(415, "a mask is a PNG")
  # the size that its head states, before anything is decoded
  width, height = (int.from_bytes(content[at : at + 4], "big") for at in SIZE_AT)
  if width * height > MAX_PIXELS:
    raise HTTPException(413, f"a mask of {width} x {height} pixels is too large")
  try:
    image = Image.open(io.BytesIO(content), formats=("PNG",))
    values_HW = np.asarray(image.convert("L"))
  except (OSError, SyntaxError, ValueError) as error:
    raise HTTPException(415, f"the PNG cannot be read: {error}") from error
  return adding.png_bytes(values_HW > 127)


def _mesh(content: bytes) -> bytes:
  """A GLB that the reader reads."""
  if not content.startswith(b"glTF"):
    raise HTTPException(415, "a mesh is a .glb")
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "upload.glb"
    path.write_bytes(content)
    try:
      read = meshes.read(path)
    except Refused as error:
      detail = error.detail.replace(str(path), "the file")
      raise HTTPException(415, f"the .glb cannot be used: {detail}") from error
    del read
  return content


def served(project: Project, digest: str) -> Response:
  """A kept file. Raises HTTPException."""
  if not is_digest(digest) or not project.blobs.has(digest):
    raise HTTPException(404, "there is no such file")
  content = project.blobs.read(digest)
  media = BYTES
  for start, known in TYPES:
    if content.startswith(start):
      media = known
  headers = {
    "cache-control": "private, max-age=31536000, immutable",
    "content-security-policy": "default-src 'none'; sandbox",
    "x-content-type-options": "nosniff",
  }
  return Response(content, media_type=media, headers=headers)
