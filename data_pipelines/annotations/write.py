"""Writing annotation folders from a program: an annotation tool's export, or a model's samples with
a judge's scores.

    from data_pipelines.annotations import choices, write
    proposals = {
      "a": write.Proposal("sam3d/step-2000", voxels=voxels_a),
      "b": write.Proposal("sam3d/step-2000", voxels=voxels_b),
    }
    chain = choices.from_scores({"a": 0.41, "b": 0.37})
    write.from_example(folder / "0001", example, proposals, chain, rating=4.1)

Every item is a folder of its own; its `annotation.json` is written last, so an item that can be
read is whole.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import shutil
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.annotations import choices as chain
from data_pipelines.annotations import layout
from data_pipelines.format import schema
from sam3d_jax.files import atomic
from sam3d_jax.geometry import rotations
from sam3d_jax.geometry.pose import Pose

JPEG_START = b"\xff\xd8"
# fields of a Proposal that its .npz holds
LATENT_FIELDS = (
  "voxels",
  "structure_latent",
  "structure_latent_autoencoder",
  "slat",
  "slat_autoencoder",
)


@dataclasses.dataclass(frozen=True)
class Proposal:
  """A shape to write: a mesh file that is copied, or voxels and latents."""

  generator: str  # "family" or "family/version"
  mesh: pathlib.Path | None = None
  voxels: np.ndarray | None = None  # (N, 3) uint8 surface voxels in 64^3
  structure_latent: np.ndarray | None = None  # (x, y, z, c)
  structure_latent_autoencoder: str = ""
  slat: np.ndarray | None = None  # (N, 8), in the order of `voxels`
  slat_autoencoder: str = ""
  pose: Pose | None = None
  license: str = ""


def from_example(
  folder: pathlib.Path,
  example: Mapping[str, Any],
  proposals: Mapping[str, Proposal],
  choices: Sequence[chain.Choice],
  *,
  rating: float | None = None,
  artist: Proposal | None = None,
  note: str = "",
) -> pathlib.Path:
  """Writes an item about the photo, mask, point map and camera of a record.

  Returns its JSON file.
  """
  # its pictures, byte for byte
  is_jpeg = example["image"].startswith(JPEG_START)
  names = {
    "mask_full": "mask_full.png",
    "mask": "mask.png",
    "image": "image.jpg" if is_jpeg else "image.png",
  }
  files = {}
  for field, name in names.items():
    if schema.is_present(example, field):
      files[field] = (name, example[field])

  # its points
  pointmap = camera = None
  if schema.is_present(example, "pointmap"):
    pointmap = example["pointmap"]
  if schema.is_present(example, "camera"):
    camera = {key: float(example["camera"][key]) for key in schema.CAMERA_LENGTHS}
  return item(
    folder,
    files,
    pointmap,
    camera,
    proposals,
    choices,
    rating=rating,
    artist=artist,
    note=note,
    license=example["license"],
  )


def from_arrays(
  folder: pathlib.Path,
  image_HW3: np.ndarray,
  mask_HW: np.ndarray,
  proposals: Mapping[str, Proposal],
  choices: Sequence[chain.Choice],
  *,
  pointmap_HW3: np.ndarray | None = None,
  mask_full_HW: np.ndarray | None = None,
  camera: tuple[float, float, float, float] | None = None,
  rating: float | None = None,
  artist: Proposal | None = None,
  license: str = "",
  note: str = "",
) -> pathlib.Path:
  """Writes an item about arrays; returns its JSON file.

  Args:
    image_HW3: uint8.
    mask_HW, mask_full_HW: bool, the visible part of the object and all of it.
    pointmap_HW3: camera frame, NaN unknown.
    camera: fx, fy, cx, cy in pixels of the image.
  """
  folder.mkdir(parents=True, exist_ok=True)
  files = {
    "image": ("image.png", image_HW3),
    "mask": ("mask.png", _mask_picture(mask_HW)),
  }
  if mask_full_HW is not None:
    files["mask_full"] = ("mask_full.png", _mask_picture(mask_full_HW))
  stated = None
  if camera is not None:
    lengths = map(float, camera)
    stated = dict(zip(schema.CAMERA_LENGTHS, lengths, strict=True))
  return item(
    folder,
    files,
    pointmap_HW3,
    stated,
    proposals,
    choices,
    rating=rating,
    artist=artist,
    note=note,
    license=license,
  )


def _mask_picture(mask_HW: np.ndarray) -> np.ndarray:
  """White inside, black outside."""
  return mask_HW.astype(np.uint8) * 255


def item(
  folder: pathlib.Path,
  files: Mapping[str, tuple[str, Any]],
  pointmap: np.ndarray | None,
  camera: Mapping[str, float] | None,
  proposals: Mapping[str, Proposal],
  choices: Sequence[chain.Choice],
  *,
  rating: float | None,
  artist: Proposal | None,
  note: str,
  license: str,
) -> pathlib.Path:
  """Writes an item's files, its JSON last; returns the JSON file.

  files: key -> (name, encoded bytes or an image). camera: fx, fy, cx, cy by name.
  """
  # the photo
  folder.mkdir(parents=True, exist_ok=True)
  stated: dict[str, Any] = {"format": layout.FORMAT}
  for key, (name, content) in files.items():
    stated[key] = name
    if isinstance(content, bytes):
      (folder / name).write_bytes(content)
    else:
      Image.fromarray(content).save(folder / name)
  if pointmap is not None:
    stated["pointmap"] = "pointmap.npz"
    np.savez_compressed(folder / "pointmap.npz", pointmap=pointmap)
  if camera is not None:
    stated["camera"] = camera
  if license:
    stated["license"] = license

  # what was proposed, and what people said about it
  stated["candidates"] = {}
  for name, proposal in proposals.items():
    stated["candidates"][name] = _proposal(folder, name, proposal)
  stated["choices"] = []
  for choice in choices:
    said = {key: value for key, value in dataclasses.asdict(choice).items() if value}
    stated["choices"].append(said)
  if rating is not None:
    stated["rating"] = float(rating)
  if artist is not None:
    made = _proposal(folder, layout.ARTIST, artist)
    del made["generator"]
    stated["artist"] = made
  if note:
    stated["note"] = note

  # last: who can read it finds everything that it names
  path = folder / layout.FILE
  text = json.dumps(stated, indent=2) + "\n"
  atomic.write_text(path, text)
  return path


def _proposal(folder: pathlib.Path, name: str, proposal: Proposal) -> dict[str, Any]:
  """Writes the file of a shape; the entry that names it."""
  stated: dict[str, Any] = {"generator": proposal.generator}

  # the shape: a copied mesh, or latents
  if proposal.mesh is not None:
    suffix = proposal.mesh.suffix.lower()
    stated["mesh"] = f"{name}{suffix}"
    shutil.copyfile(proposal.mesh, folder / stated["mesh"])
  else:
    stated["latents"] = f"{name}.npz"
    arrays = {}
    for field in LATENT_FIELDS:
      value = getattr(proposal, field)
      if value is not None and len(value):
        arrays[field] = value
    np.savez_compressed(folder / stated["latents"], **arrays)

  # where it stands
  if proposal.pose is not None:
    rotation, translation, scale = (np.asarray(x, np.float64) for x in proposal.pose)
    quaternion = rotations.matrix_to_quaternion(rotation)
    scale_3 = np.broadcast_to(scale, (3,))
    stated["pose"] = {
      "rotation": quaternion.tolist(),
      "translation": translation.tolist(),
      "scale": scale_3.tolist(),
    }
  if proposal.license:
    stated["license"] = proposal.license
  return stated
