"""The annotation folder: one `annotation.json` an item, beside or above the files that it names.

    {
      "format": 1,
      "image": "photo.jpg",          as sam3d_jax/files/images.py reads it
      "mask": "mask.png",            visible part of the object, size of the photo
      "mask_full": "whole.png",      optional: the object as if nothing stood before it
      "pointmap": "points.npz",      optional: points or depth, see sam3d_jax/files/pointmaps.py
      "camera": {"fx": 900, "fy": 900, "cx": 512, "cy": 384},
                                     optional: pixels of the photo; else that of the point map
      "frame": "pytorch3d",          optional: of poses and point map; pytorch3d, opencv or gltf
      "license": "CC-BY-4.0",        optional: of photo and shapes
      "candidates": {
        "a": {"generator": "sam3d/iteration-2", "mesh": "a.glb",
              "pose": {"rotation": [1, 0, 0, 0], "translation": [0, 0, 2], "scale": 0.4}},
        "b": {"generator": "retrieval", "latents": "b.npz"}
      },
      "choices": [{"left": "a", "right": "b", "answer": "left"}],
      "rating": 4.0,                 optional: r, of the candidate that won
      "artist": {"mesh": "artist.glb", "pose": {...}}
                                     optional: what an artist made where no candidate was good
    }

Paths are relative to the JSON file and stay in the folder that is read, unless files_outside says
otherwise. `generator` is "family" or "family/version". A shape is a mesh
file, or a .npz with `voxels` (N x 3 in 64^3) and/or `structure_latent` (x, y, z, c) with
`structure_latent_autoencoder`, and optionally `slat` (N x 8) with `slat_autoencoder`. A pose takes
the shape in the unit cube (z up) to the camera, p = R (scale * x) + translation, with R as (w, x,
y, z) or 3 x 3 acting on column vectors; or {"matrix": 4 x 4} takes the mesh file's own coordinates
there. `choices` is the chain of comparisons in the order in which they were made; see choices.py.
Every mistake is reported with file, key, value and remedy.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np

from data_pipelines.annotations import choices as chain
from data_pipelines.synth import sources
from sam3d_jax.errors import InputError
from sam3d_jax.files import blame, names, texts
from sam3d_jax.geometry import cameras, rotations
from sam3d_jax.geometry.pose import Pose

FILE = "annotation.json"
FORMAT = 1
ARTIST = "artist"  # generator of artists' meshes
MAX_BYTES = 1 << 26  # of an annotation file
SHOWN = 300  # characters of a value in a message
ORTHONORMAL = 1e-3  # largest error of a rotation given as a matrix
KEYS = (
  "format",
  "image",
  "mask",
  "mask_full",
  "pointmap",
  "camera",
  "frame",
  "license",
  "candidates",
  "choices",
  "rating",
  "artist",
  "note",
)
CHOICE_KEYS = {"left", "right", "answer"}
CAMERA_KEYS = ("fx", "fy", "cx", "cy")
CANDIDATE_KEYS = ("generator", "mesh", "latents", "pose", "license")


class AnnotationError(InputError):
  """An annotation file is wrong; the message names file, key, value and remedy."""


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One shape proposed for an object; exactly one of `mesh` and `latents` is a file.

  At most one of `pose` (unit cube to camera) and `file_matrix_44` (coordinates of the mesh file to
  camera) says where it stands, in our camera frame.
  """

  name: str
  generator: str
  mesh: pathlib.Path | None = None
  latents: pathlib.Path | None = None
  pose: Pose | None = None
  file_matrix_44: np.ndarray | None = None
  license: str = ""

  @property
  def has_pose(self) -> bool:
    return self.pose is not None or self.file_matrix_44 is not None

  @property
  def family(self) -> str:
    """The generator without its version."""
    return self.generator.partition("/")[0]

  @property
  def shape_file(self) -> pathlib.Path:
    return self.mesh or self.latents


@dataclasses.dataclass(frozen=True)
class Item:
  """One object of one photo with everything that people said about it."""

  file: pathlib.Path
  image: pathlib.Path
  mask: pathlib.Path
  candidates: Mapping[str, Candidate]
  verdict: chain.Verdict
  mask_full: pathlib.Path | None = None
  pointmap: pathlib.Path | None = None
  camera: tuple[float, float, float, float] | None = None  # fx, fy, cx, cy in pixels of the photo
  frame: str = "pytorch3d"  # of the point map's file; poses are in ours already
  license: str = ""
  rating: float | None = None
  artist: Candidate | None = None

  @property
  def best(self) -> Candidate | None:
    """The candidate that won the chain of choices; None if there is no candidate."""
    return self.candidates.get(self.verdict.best)

  @property
  def files(self) -> list[pathlib.Path]:
    """Every file that the item is made of, its JSON first."""
    pictures = [self.image, self.mask, self.mask_full, self.pointmap]
    named = [path for path in pictures if path is not None]
    proposed = list(self.candidates.values())
    if self.artist is not None:
      proposed.append(self.artist)
    shapes = [candidate.shape_file for candidate in proposed]
    return [self.file, *named, *shapes]


def find(root: pathlib.Path) -> list[pathlib.Path]:
  """All annotation files below `root`, in order."""
  return [path for path in sources.files_below(root) if path.name == FILE]


def read(
  path: pathlib.Path, *, root: str | pathlib.Path | None = None, files_outside: bool = False
) -> Item:
  """Reads and checks one annotation file.

  Args:
    path: the file. The files that it names must exist, they are not opened.
    root: the folder in which all of them lie, links followed; None: that of the file.
    files_outside: whether they may lie anywhere.

  Raises:
    AnnotationError: it cannot be read, or something in it is wrong.
    OSError: the disk failed.
  """
  path = pathlib.Path(path)
  root = path.parent if root is None else pathlib.Path(root)
  try:
    if path.stat().st_size > MAX_BYTES:
      raise AnnotationError(f"{path} has more than {MAX_BYTES} bytes, which no annotation needs")
    stated = texts.read_json(path)
    return _Reader(path, root, files_outside).item(stated)
  except AnnotationError:
    raise
  # Whatever a broken file leads to means the same here; a broken disk does not.
  except Exception as error:
    if not blame.is_of_the_file(error):
      raise
    raise AnnotationError(f"{path} cannot be read as JSON: {error}") from error


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Checks the values of one file."""

  path: pathlib.Path  # for messages, and for finding the files that it names
  root: pathlib.Path  # in which they have to lie
  files_outside: bool  # unless they may lie anywhere

  def fail(self, key: str, value: Any, remedy: str) -> None:
    text = json.dumps(value)
    if len(text) > SHOWN:
      text = f"{text[:SHOWN]}..."
    raise AnnotationError(f"{self.path}: {key} = {text}: {remedy}")

  def item(self, stated: Any) -> Item:
    # the file as a whole
    if not isinstance(stated, dict):
      raise AnnotationError(f"{self.path} must hold a JSON object, not a {type(stated).__name__}")
    self.known(stated, KEYS, "")
    stated_format = stated.get("format")
    if stated_format != FORMAT:
      self.fail(
        "format", stated_format, f'this code reads format {FORMAT}; write "format": {FORMAT}'
      )
    frame = stated.get("frame", "pytorch3d")
    if not isinstance(frame, str) or frame not in cameras.AXES:
      self.fail("frame", frame, f"name one of {', '.join(cameras.AXES)}")

    # the shapes
    given = stated.get("candidates", {})
    if not isinstance(given, dict):
      self.fail("candidates", given, 'write an object: {"name": {"generator": ..., "mesh": ...}}')
    candidates = {}
    for name, value in given.items():
      candidates[name] = self.candidate(f"candidates.{name}", name, value, frame)
    artist = stated.get("artist")
    if isinstance(artist, dict):
      artist = {"generator": ARTIST} | artist
    if artist is not None:
      artist = self.candidate("artist", ARTIST, artist, frame)
    if not candidates and artist is None:
      self.fail("candidates", given, "give at least one candidate, or an artist's mesh")

    # the photo, and what people said
    return Item(
      file=self.path,
      image=self.file("image", stated.get("image")),
      mask=self.file("mask", stated.get("mask")),
      mask_full=self.optional_file("mask_full", stated),
      pointmap=self.optional_file("pointmap", stated),
      camera=self.camera(stated.get("camera")),
      frame=frame,
      license=self.text("license", stated.get("license", "")),
      candidates=candidates,
      verdict=self.verdict(list(candidates), stated.get("choices", [])),
      rating=self.rating(stated.get("rating")),
      artist=artist,
    )

  def known(self, value: dict, keys: tuple[str, ...], prefix: str) -> None:
    unknown = sorted(set(value) - set(keys))
    if unknown:
      first = unknown[0]
      self.fail(prefix + first, value[first], f"no such key; there are {', '.join(keys)}")

  def text(self, key: str, value: Any) -> str:
    if not isinstance(value, str):
      self.fail(key, value, "write a text")
    return value

  def file(self, key: str, value: Any) -> pathlib.Path:
    if not isinstance(value, str) or not value:
      self.fail(key, value, "name a file, relative to the JSON file")
    found = self.path.parent / value
    if not self.files_outside:
      try:
        names.below(self.path.parent, value, also=[self.root])
      except names.Outside as error:
        self.fail(
          key, value, f"{error}; copy the file there, or allow it with --config.files_outside=True"
        )
    named = str(found)[:SHOWN]
    try:
      exists = found.is_file()
    except (OSError, ValueError):  # a name that is too long for any file, or none
      exists = False
    if not exists:
      self.fail(key, value, f"there is no file {named}; copy it there or correct the path")
    return found

  def optional_file(self, key: str, stated: dict) -> pathlib.Path | None:
    if stated.get(key) is None:
      return None
    return self.file(key, stated[key])

  def numbers(self, key: str, value: Any, *shape: int) -> np.ndarray:
    try:
      array = np.array(value, np.float64)
    except (TypeError, ValueError):
      array = np.array(np.nan)
    if array.shape != shape or not np.isfinite(array).all():
      wanted = "a single finite number"
      if shape:
        wanted = " x ".join(map(str, shape)) + " finite numbers"
      self.fail(key, value, f"give {wanted}")
    return array

  def camera(self, value: Any) -> tuple[float, float, float, float] | None:
    if value is None:
      return None
    if not isinstance(value, dict) or set(value) != set(CAMERA_KEYS):
      self.fail(
        "camera", value, 'write {"fx": ..., "fy": ..., "cx": ..., "cy": ...} in pixels of the photo'
      )
    stated = [self.numbers(f"camera.{key}", value[key]) for key in CAMERA_KEYS]
    fx, fy, cx, cy = map(float, stated)
    if min(fx, fy) <= 0:
      self.fail("camera", value, "focal lengths must be positive")
    return fx, fy, cx, cy

  def rating(self, value: Any) -> float | None:
    if value is None:
      return None
    return float(self.numbers("rating", value))

  def candidate(self, key: str, name: str, value: Any, frame: str) -> Candidate:
    # who made it
    if not isinstance(value, dict):
      self.fail(key, value, 'write an object: {"generator": ..., "mesh": ...}')
    self.known(value, CANDIDATE_KEYS, f"{key}.")
    generator = self.text(f"{key}.generator", value.get("generator"))
    if not generator or "," in generator:
      self.fail(
        f"{key}.generator",
        generator,
        "name the model that made the shape, without commas: family or family/version",
      )

    # its shape, and where it stands
    shapes = [form for form in ("mesh", "latents") if value.get(form) is not None]
    if len(shapes) != 1:
      self.fail(key, value, "give exactly one of mesh (a mesh file) and latents (a .npz)")
    form = shapes[0]
    place = self.place(f"{key}.pose", value.get("pose"), frame)
    if "file_matrix_44" in place and form == "latents":
      self.fail(
        f"{key}.pose",
        value["pose"],
        "latents have no coordinates of their own: give rotation, translation and scale",
      )
    shape_file = {form: self.file(f"{key}.{form}", value[form])}
    license = self.text(f"{key}.license", value.get("license", ""))
    return Candidate(name, generator, license=license, **shape_file, **place)

  def place(self, key: str, value: Any, frame: str) -> dict[str, Any]:
    """The field of a Candidate that says where it stands, in our frame; none without a pose."""
    if value is None:
      return {}
    # a change of frame negates rows of whatever yields camera coordinates
    turn = np.array(cameras.AXES[frame])[:, None]
    keys = set(value) if isinstance(value, dict) else set()

    # a matrix of the mesh file's own coordinates
    if keys == {"matrix"}:
      matrix = self.numbers(f"{key}.matrix", value["matrix"], 4, 4)
      if not np.allclose(matrix[3], [0, 0, 0, 1]):
        self.fail(
          f"{key}.matrix",
          value["matrix"],
          "the last row must be 0 0 0 1 (column vectors: translation in the last column)",
        )
      turned = np.concatenate([matrix[:3] * turn, matrix[3:]])
      return {"file_matrix_44": turned}

    # a pose of the unit cube; a single scale is that of all three axes
    if keys != {"rotation", "translation", "scale"}:
      self.fail(
        key, value, 'write {"rotation": ..., "translation": ..., "scale": ...} or {"matrix": 4 x 4}'
      )
    shape = (3,) if isinstance(value["scale"], list) else ()
    scale = self.numbers(f"{key}.scale", value["scale"], *shape)
    if (scale <= 0).any():
      self.fail(f"{key}.scale", value["scale"], "a scale is positive")
    translation = self.numbers(f"{key}.translation", value["translation"], 3)
    rotation = self.rotation(f"{key}.rotation", value["rotation"])
    pose = Pose(
      rotation=rotation * turn,
      translation=translation * turn[:, 0],
      scale=np.broadcast_to(scale, (3,)).copy(),
    )
    return {"pose": pose}

  def rotation(self, key: str, value: Any) -> np.ndarray:
    # a quaternion
    if isinstance(value, list) and len(value) == 4:
      quaternion = self.numbers(key, value, 4)
      norm = float(np.linalg.norm(quaternion))
      if not math.isclose(norm, 1.0, abs_tol=1e-2):
        self.fail(key, value, "a rotation is a unit quaternion w, x, y, z")
      return rotations.quaternion_to_matrix(quaternion)

    # a matrix
    matrix = self.numbers(key, value, 3, 3)
    error = np.abs(matrix @ matrix.T - np.eye(3)).max()
    mirrors = np.linalg.det(matrix) < 0
    if error > ORTHONORMAL or mirrors:
      self.fail(
        key, value, "give an orthonormal matrix of determinant 1, or a unit quaternion w, x, y, z"
      )
    return matrix

  def verdict(self, names: list[str], value: Any) -> chain.Verdict:
    if not isinstance(value, list):
      self.fail("choices", value, 'write a list of {"left": ..., "right": ..., "answer": ...}')

    # each choice by itself
    made = []
    for number, choice in enumerate(value):
      keys = set(choice) if isinstance(choice, dict) else set()
      if not CHOICE_KEYS <= keys <= CHOICE_KEYS | {"kept"}:
        self.fail(f"choices[{number}]", choice, 'write {"left": ..., "right": ..., "answer": ...}')
      made.append(chain.Choice(**choice))

    # whether they are a chain
    try:
      return chain.judge(names, made)
    except chain.ChoiceError as error:
      raise AnnotationError(f"{self.path}: {error}") from error
