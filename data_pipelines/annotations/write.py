"""Writing annotation folders from a program: an annotation tool's export, or a model's samples with
a judge's scores.

    from data_pipelines.annotations import choices, write
    proposals = {"a": write.Proposal("sam3d/step-2000", voxels=voxels_a), "b": write.Proposal("sam3d/step-2000", voxels=voxels_b)}
    write.from_example(folder / "0001", example, proposals, choices.from_scores({"a": 0.41, "b": 0.37}), rating=4.1)

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


@dataclasses.dataclass(frozen=True)
class Proposal:
  """A shape to write: a mesh file that is copied, or voxels and latents; `pose` as in
  sam3d_jax.geometry.pose.
  """

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
  """Writes an item about the photo, mask, point map and camera of a record; returns its JSON file."""
  names = {
    "mask_full": "mask_full.png",
    "mask": "mask.png",
    "image": "image.jpg" if example["image"][:2] == b"\xff\xd8" else "image.png",
  }
  files = {
    field: (name, example[field])
    for field, name in names.items()
    if schema.is_present(example, field)
  }
  pointmap = example["pointmap"] if schema.is_present(example, "pointmap") else None
  camera = None
  if schema.is_present(example, "camera"):
    camera = {key: float(example["camera"][key]) for key in ("fx", "fy", "cx", "cy")}
  return _write(
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
  """Writes an item about an image (uint8), masks (bool), a point map (camera frame, NaN unknown)
  and fx, fy, cx, cy in its pixels.
  """
  folder.mkdir(parents=True, exist_ok=True)
  files = {"image": ("image.png", image_HW3), "mask": ("mask.png", mask_HW.astype(np.uint8) * 255)}
  if mask_full_HW is not None:
    files["mask_full"] = ("mask_full.png", mask_full_HW.astype(np.uint8) * 255)
  stated = (
    None if camera is None else dict(zip(("fx", "fy", "cx", "cy"), map(float, camera), strict=True))
  )
  return _write(
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


def _write(
  folder: pathlib.Path,
  files: Mapping[str, tuple[str, Any]],
  pointmap,
  camera,
  proposals,
  choices,
  *,
  rating,
  artist,
  note,
  license,
) -> pathlib.Path:
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
  stated |= {"camera": camera} if camera is not None else {}
  stated |= {"license": license} if license else {}
  stated["candidates"] = {
    name: _proposal(folder, name, proposal) for name, proposal in proposals.items()
  }
  stated["choices"] = [
    {k: v for k, v in dataclasses.asdict(choice).items() if v} for choice in choices
  ]
  stated |= {"rating": float(rating)} if rating is not None else {}
  if artist is not None:
    stated["artist"] = {
      k: v for k, v in _proposal(folder, layout.ARTIST, artist).items() if k != "generator"
    }
  stated |= {"note": note} if note else {}
  path = folder / layout.FILE
  text = json.dumps(stated, indent=2) + "\n"
  atomic.write_text(path, text)
  return path


def _proposal(folder: pathlib.Path, name: str, proposal: Proposal) -> dict[str, Any]:
  stated: dict[str, Any] = {"generator": proposal.generator}
  if proposal.mesh is not None:
    stated["mesh"] = f"{name}{proposal.mesh.suffix.lower()}"
    shutil.copyfile(proposal.mesh, folder / stated["mesh"])
  else:
    stated["latents"] = f"{name}.npz"
    fields = (
      "voxels",
      "structure_latent",
      "structure_latent_autoencoder",
      "slat",
      "slat_autoencoder",
    )
    arrays = {field: getattr(proposal, field) for field in fields}
    np.savez_compressed(
      folder / stated["latents"], **{k: v for k, v in arrays.items() if v is not None and len(v)}
    )
  if proposal.pose is not None:
    stated["pose"] = {
      "rotation": rotations.matrix_to_quaternion(
        np.asarray(proposal.pose.rotation, np.float64)
      ).tolist(),
      "translation": np.asarray(proposal.pose.translation, np.float64).tolist(),
      "scale": np.broadcast_to(np.asarray(proposal.pose.scale, np.float64), (3,)).tolist(),
    }
  return stated | ({"license": proposal.license} if proposal.license else {})
