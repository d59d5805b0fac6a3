"""Gaussian splats in `.ply` files, in the layout that splat viewers read and published code writes.

One row a splat, float32 little endian, 68 bytes:

    x y z           centre
    nx ny nz        0, for viewers that expect normals
    f_dc_0..2       colour: (rgb - 0.5) / 0.28209479, the spherical harmonic of degree 0
    opacity         logit of the opacity
    scale_0..2      natural logarithm of the standard deviation
    rot_0..3        quaternion w x y z

The values in the file are those of `Splats` under their inverse activations: whatever a decoder
adds to its raw outputs (biases, smallest scales) is in them already. Frames stay as they are: files
of SAM 3D objects are z up, those of TRELLIS y down. Readers take the columns in any order and of
any type, text files and big-endian ones too.
"""

import pathlib
import warnings

import numpy as np

from sam3d_jax.errors import InputError, InputNote, Refused
from sam3d_jax.files import atomic, blame
from sam3d_jax.files.mesh_formats import ply_tables
from sam3d_jax.render.splats import Splats, colours_of_sh0, sh0_of_colours

CENTRE = ("x", "y", "z")
NORMAL = ("nx", "ny", "nz")
COLOUR = ("f_dc_0", "f_dc_1", "f_dc_2")
OPACITY = ("opacity",)
SCALE = ("scale_0", "scale_1", "scale_2")
ROTATION = ("rot_0", "rot_1", "rot_2", "rot_3")
COLUMNS = (*CENTRE, *NORMAL, *COLOUR, *OPACITY, *SCALE, *ROTATION)
NEEDED = (*CENTRE, *COLOUR, *OPACITY, *SCALE, *ROTATION)
HIGHER = "f_rest_"  # harmonics of higher degrees: colours that depend on the direction
PACKED = "packed_position"  # of compressed splats
# logits are written of opacities held this far from 0 and 1, where they are infinite
OPACITY_MARGIN = 1e-6
MAX_LOG_SCALE = 88.0  # above it float32 has no exponential


def holds_splats(path: str | pathlib.Path) -> bool:
  """Whether a .ply file is one of splats, not of a mesh; False for anything unreadable."""
  try:
    with open(path, "rb") as file:
      start = file.read(ply_tables.MAX_HEADER)
  except OSError:
    return False
  # The names of its columns say so.
  is_ply = start.startswith(b"ply")
  header, _, _ = start.partition(ply_tables.END)
  named = header.split()
  return is_ply and (b"f_dc_0" in named or PACKED.encode() in named)


def read(path: str | pathlib.Path) -> Splats:
  """The splats of a .ply file, activated, float32, in the frame of the file.

  Colours are those of degree 0; a note (InputNote) says if the file has higher degrees. NaN is let
  through: renderers leave such splats out and count them.

  Raises:
    InputError: no such file, or one that holds no splats; names the file, what is wrong and what
      helps.
    OSError: the disk failed, or the file may not be read.
  """
  path = pathlib.Path(path)
  try:
    data = path.read_bytes()
    header = ply_tables.read_header(data)
    tables = ply_tables.read_tables(data, header)
  except Refused as error:
    raise InputError(f"splats {path}: {error.detail}") from error
  except Exception as error:
    if not blame.is_of_the_file(error):
      raise
    raise InputError(f"splats {path}: cannot be read as .ply ({blame.said(error)})") from error
  if "vertex" not in tables:
    raise InputError(f"splats {path}: a .ply file without vertices")
  vertices = tables["vertex"]
  _check_columns(vertices, path)

  # Columns under their activations.
  centres = _columns(vertices, CENTRE)
  logits = _columns(vertices, OPACITY)[:, 0]
  logarithms = _columns(vertices, SCALE)
  too_large = np.nanmax(logarithms, initial=-np.inf)
  if too_large > MAX_LOG_SCALE:
    raise InputError(
      f"splats {path}: scale_* up to {too_large:.4g}, which are logarithms of lengths: if the file "
      "has the lengths themselves, write their logarithms"
    )
  with np.errstate(over="ignore"):
    opacities = 1.0 / (1.0 + np.exp(-logits))
  return Splats(
    centres_N3=centres,
    scales_N3=np.exp(logarithms),
    rotations_N4=_columns(vertices, ROTATION),
    opacities_N=opacities,
    colours_N3=colours_of_sh0(_columns(vertices, COLOUR)),
  )


def _check_columns(vertices: ply_tables.Table, path: pathlib.Path) -> None:
  """Raises InputError for a table that is not one of splats; notes what is not read of it."""
  lacking = [name for name in NEEDED if name not in vertices.columns]
  if PACKED in vertices.columns:
    raise InputError(
      f"splats {path}: compressed splats ({PACKED}), which are not read: write them uncompressed"
    )
  if lacking:
    listed = ", ".join(lacking)
    raise InputError(
      f"splats {path}: its vertices have no {listed}: a mesh or points, or splats of another "
      "layout (needed are x y z, f_dc_0..2, opacity, scale_0..2, rot_0..3)"
    )
  if vertices.element.count == 0:
    raise InputError(f"splats {path}: holds no splats")
  if any(name.startswith(HIGHER) for name in vertices.columns):
    warnings.warn(
      f"splats {path}: colours depend on the direction ({HIGHER}*); only their constant part is "
      "used",
      InputNote,
      stacklevel=3,
    )


def _columns(vertices: ply_tables.Table, names: tuple[str, ...]) -> np.ndarray:
  """(N, columns) float32."""
  columns = [vertices.column(name) for name in names]
  return np.stack(columns, axis=1).astype(np.float32)


def write(path: str | pathlib.Path, splats: Splats) -> None:
  """Writes splats in their own frame; those with opacity 0, which are padding, are left out.

  Rotations are written at length 1, opacities OPACITY_MARGIN from 0 and 1 at least.

  Raises ValueError for splats that no file can hold: NaN or infinity, a scale that is not positive,
  a rotation of length 0.
  """
  used = np.asarray(splats.opacities_N) != 0
  kept = Splats(*(np.asarray(field, np.float32)[used] for field in splats))
  for name, field in kept._asdict().items():
    if not np.isfinite(field).all():
      raise ValueError(f"splats for {path}: {name} holds NaN or infinity")
  if (kept.scales_N3 <= 0).any():
    raise ValueError(f"splats for {path}: a scale of {kept.scales_N3.min():g} has no logarithm")
  lengths = np.linalg.norm(kept.rotations_N4, axis=1, keepdims=True)
  if (lengths == 0).any():
    raise ValueError(f"splats for {path}: a rotation of length 0")

  # Values under the inverse activations.
  opacities = kept.opacities_N.astype(np.float64)
  held = np.clip(opacities, OPACITY_MARGIN, 1 - OPACITY_MARGIN)
  logits = np.log(held) - np.log1p(-held)
  parts = [
    kept.centres_N3,
    np.zeros_like(kept.centres_N3),
    sh0_of_colours(kept.colours_N3),
    logits[:, None],
    np.log(kept.scales_N3),
    kept.rotations_N4 / lengths,
  ]
  rows = np.concatenate(parts, axis=1).astype("<f4")

  # What the rows hold, in the words of the format.
  properties = [f"property float {name}" for name in COLUMNS]
  lines = [
    "ply",
    "format binary_little_endian 1.0",
    f"element vertex {len(rows)}",
    *properties,
    "end_header",
  ]
  header = "\n".join(lines) + "\n"
  atomic.write_bytes(path, header.encode() + rows.tobytes())
