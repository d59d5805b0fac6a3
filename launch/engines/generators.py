"""Where candidates come from: `NAME=KIND:PATH`.

    meshes       PATH/PHOTO/NUMBER/*.glb (or another mesh format): files for object NUMBER of PHOTO
    checkpoint   a work folder of a Geometry model; its decoder as --decoder, or as recorded
    release      a published release folder
    dataset      a folder of mesh files: those whose silhouette, upright, is most like the mask

A kind is one entry of KINDS. A model's candidates carry their latents, so that what people choose
trains without encoding it again.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import io
import pathlib
import tempfile

import numpy as np
from PIL import Image

from data_pipelines.engine import poses
from data_pipelines.engine.project import Project
from data_pipelines.engine.proposals import Proposed, Wanting
from data_pipelines.synth import assets
from sam3d_jax.errors import InputError
from sam3d_jax.files import meshes, names, photos
from sam3d_jax.geometry import cameras
from sam3d_jax.render.mesh import write_glb
from sam3d_jax.render.preview import orbit
from sam3d_jax.render.raycast import Caster

SILHOUETTE = 48  # pixels a side of silhouettes that are compared
AZIMUTHS = (0, 45, 90, 135)  # degrees from which a mesh of a dataset is looked at


@dataclasses.dataclass(frozen=True)
class Draws:
  """How a model's candidates are drawn.

  draws: samples an object; they meet in a tournament of as many groups as candidates are wanted,
  and the best of each group by the reward is proposed. 0: no tournament. reward: as launch.sample
  --reward takes it. models: of the implicit reward. decoder, which, steps: as launch.sample.
  """

  draws: int = 0
  reward: str = "mask_iou"
  models: tuple[str, str] | None = None
  decoder: str | None = None
  which: str = "ema"
  steps: int | None = None
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Generator:
  """One source of candidates.

  name: generator that the candidates are of, "family" or "family/version". path: of its kind.
  """

  name: str
  kind: str
  path: pathlib.Path
  drawing: Draws = Draws()

  def propose(
    self, project: Project, targets: Sequence[Wanting], samples: int
  ) -> Iterator[list[Proposed]]:
    """Up to `samples` candidates of each object, in order."""
    if not samples:
      return iter([[]] * len(targets))
    return KINDS[self.kind](self, project, targets, samples)


def parse(text: str, drawing: Draws = Draws()) -> Generator:
  """The generator of a flag. Raises InputError."""
  name, equals, rest = text.partition("=")
  kind, colon, path = rest.partition(":")
  if not (name and equals and colon and path):
    raise InputError(f"--generator {text!r}: write NAME=KIND:PATH, as sam3d/1=checkpoint:RUN")
  if kind not in KINDS:
    raise InputError(f"--generator {text!r}: kind {kind!r} is not one of {', '.join(KINDS)}")
  found = pathlib.Path(path)
  if not found.exists():
    raise InputError(f"--generator {text!r}: {path} does not exist")
  return Generator(name, kind, found, drawing)


def shares(generators: Sequence[Generator], samples: int) -> list[int]:
  """How many of `samples` candidates each generator makes; the first ones make one more."""
  each, more = divmod(samples, len(generators))
  return [each + (number < more) for number in range(len(generators))]


# --------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------


def from_meshes(
  generator: Generator, project: Project, targets: Sequence[Wanting], samples: int
) -> Iterator[list[Proposed]]:
  """Files of each object's own folder, by name."""
  del project
  for target in targets:
    folder = generator.path / names.file_name(target.photo) / str(target.number)
    yield [of_file(generator, path) for path in mesh_files(folder)[:samples]]


def mesh_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """Mesh files of a folder, none of one that is not there."""
  if not folder.is_dir():
    return []
  return sorted(path for path in folder.iterdir() if path.suffix.lower() in meshes.SUFFIXES)


def of_file(generator: Generator, path: pathlib.Path) -> Proposed:
  """A file as a candidate. Raises Refused for one that cannot be read."""
  # What cannot be read is told now, not when a person has to look at it.
  asset = assets.load(path)
  suffix = path.suffix.lower()
  return Proposed(generator.name, path.read_bytes(), suffix, license=asset.license)


# --------------------------------------------------------------------------------------------------
# Retrieval
# --------------------------------------------------------------------------------------------------


def from_dataset(
  generator: Generator, project: Project, targets: Sequence[Wanting], samples: int
) -> Iterator[list[Proposed]]:
  """The meshes of a folder whose silhouettes are most like the mask, the likest first."""
  files = mesh_files(generator.path)
  if not files:
    raise InputError(f"--generator {generator.name}=dataset:{generator.path} holds no mesh")
  silhouettes = [_silhouettes(path) for path in files]
  for target in targets:
    wanted = _square(poses.mask_of(project.blobs, target.mask))
    likeness = [max(_iou(wanted, seen) for seen in views) for views in silhouettes]
    order = np.argsort(likeness, kind="stable")[::-1]
    yield [of_file(generator, files[number]) for number in order[:samples]]


def _silhouettes(path: pathlib.Path) -> list[np.ndarray]:
  """Silhouettes of a mesh from around, filled into squares."""
  caster = Caster(assets.load(path).mesh)
  camera = cameras.camera_from_fov(SILHOUETTE * 2, SILHOUETTE * 2, np.radians(40))
  found = []
  for azimuth in AZIMUTHS:
    turned = orbit(azimuth, 10)
    where = poses.Pose(turned, np.asarray([0.0, 0.0, 2.2]), np.ones(3))
    found.append(_square(caster.silhouette(where, camera)))
  return found


def _square(mask_HW: np.ndarray) -> np.ndarray:
  """What is inside the mask's box, scaled into a square whose longer side it fills."""
  rows, columns = np.nonzero(mask_HW.any(1))[0], np.nonzero(mask_HW.any(0))[0]
  if not len(rows):
    return np.zeros((SILHOUETTE, SILHOUETTE), bool)
  inside = mask_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  side = max(inside.shape)
  square = np.zeros((side, side), np.uint8)
  top, left = (side - inside.shape[0]) // 2, (side - inside.shape[1]) // 2
  square[top : top + inside.shape[0], left : left + inside.shape[1]] = inside * np.uint8(255)
  small = Image.fromarray(square).resize((SILHOUETTE, SILHOUETTE), Image.Resampling.BOX)
  return np.asarray(small) > 127


def _iou(a: np.ndarray, b: np.ndarray) -> float:
  union = np.count_nonzero(a | b)
  return np.count_nonzero(a & b) / union if union else 0.0


# --------------------------------------------------------------------------------------------------
# Models
# --------------------------------------------------------------------------------------------------


def from_model(
  generator: Generator, project: Project, targets: Sequence[Wanting], samples: int
) -> Iterator[list[Proposed]]:
  """Samples of a model, drawn in batches over objects."""
  # JAX, which files and retrieval do without.
  from sam3d_jax.inference import rewards
  from sam3d_jax.inference.reconstruction import Reconstructor

  drawing = generator.drawing
  draws = max(drawing.draws, samples)
  if generator.kind == "release":
    model = Reconstructor.from_release(generator.path, steps=drawing.steps)
  else:
    model = Reconstructor.from_checkpoint(
      generator.path, decoder=drawing.decoder, which=drawing.which, steps=drawing.steps
    )
  config = rewards.RewardConfig(drawing.reward, drawing.models, drawing.which)
  reward = rewards.load(config, model.predictor, drawing.seed)

  pictures = (photo_of(project, target) for target in targets)
  drawn = model.candidates(pictures, samples=draws, seed=drawing.seed, count=draws * len(targets))
  for group in drawn:
    whole = [one for one in group if one.shape is not None]
    winners = tournament(whole, samples, reward)
    yield [of_sample(generator, one) for one in winners]


def tournament(candidates: list, kept: int, reward: Callable) -> list:
  """The best of each of `kept` groups of the candidates; all of them if there are no more.

  Groups, and not the best of all: those would be alike, and a person would have nothing to choose.
  """
  if len(candidates) <= kept:
    return candidates
  winners = []
  for number in range(kept):
    group = candidates[number::kept]
    scores = reward(group)
    winners.append(group[int(np.argmax(scores))])
  return winners


def photo_of(project: Project, target: Wanting) -> photos.Photo:
  """The object's photo with its mask alone, as it was taken in."""
  content = project.blobs.read(target.image)
  picture = Image.open(io.BytesIO(content), formats=("PNG", "JPEG")).convert("RGB")
  photo = photos.Photo(
    np.asarray(picture),
    masks={"object": poses.mask_of(project.blobs, target.mask)},
    path=target.photo,
  )
  if target.camera is not None:
    photo = photo.with_camera([target.camera[key] for key in ("fx", "fy", "cx", "cy")])
  if target.pointmap is not None:
    photo = photo.with_pointmap(poses.points_of(project.blobs, target.pointmap))
  return photo.with_some_camera()


def of_sample(generator: Generator, candidate) -> Proposed:
  """A model's sample: its mesh, its latents, where it puts it."""
  from launch.ladders.data import shape_fields

  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "sample.glb"
    write_glb(path, {"sample": candidate.shape})
    mesh = path.read_bytes()
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **shape_fields(candidate.prediction, candidate.predictor))
  where = candidate.placement
  pose = None
  if where is not None:
    pose = poses.to_json(where)
  return Proposed(generator.name, mesh, ".glb", latents=buffer.getvalue(), pose=pose)


KINDS: dict[str, Callable[..., Iterator[list[Proposed]]]] = {
  "meshes": from_meshes,
  "dataset": from_dataset,
  "checkpoint": from_model,
  "release": from_model,
}
