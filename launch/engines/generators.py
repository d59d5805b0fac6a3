"""Where candidates come from: `NAME=KIND:PATH`.

    meshes       PATH/PHOTO/NUMBER/*.glb (or another mesh format): files for object NUMBER of PHOTO
    checkpoint   a work folder of a Geometry model; its decoder as --decoder, or as recorded
    release      a published release folder
    dataset      a folder of mesh files: those whose silhouette, upright, is most like the mask

A kind is one entry of KINDS. A model's candidates carry their latents, so that what people choose
trains without encoding it again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from launch.console.refusals import Refusals
from sam3d_jax.errors import InputError
from sam3d_jax.files import meshes, names, photos
from sam3d_jax.geometry import cameras
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.render import raycast
from sam3d_jax.render.mesh import write_glb
from sam3d_jax.render.preview import orbit

SILHOUETTE = 48  # pixels a side of silhouettes that are compared
# from where a mesh of a dataset is looked at, in degrees, and in lengths of its unit cube
AZIMUTHS = (0, 45, 90, 135)
ELEVATION = 10
FOV_DEG = 40
DISTANCE = 2.2


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
    self, project: Project, targets: Sequence[Wanting], samples: int, refused: Refusals
  ) -> Iterator[list[Proposed]]:
    """Up to `samples` candidates of each object, in order; files that are none are refused."""
    if not samples:
      return iter([[]] * len(targets))
    return KINDS[self.kind](self, project, targets, samples, refused)


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
  generator: Generator,
  project: Project,
  targets: Sequence[Wanting],
  samples: int,
  refused: Refusals,
) -> Iterator[list[Proposed]]:
  """Files of each object's own folder, by name."""
  del project
  for target in targets:
    folder = generator.path / names.file_name(target.photo) / str(target.number)
    yield of_files(generator, mesh_files(folder), samples, refused)


def mesh_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """Mesh files of a folder, none of one that is not there."""
  if not folder.is_dir():
    return []
  return sorted(path for path in folder.iterdir() if path.suffix.lower() in meshes.SUFFIXES)


def of_files(
  generator: Generator, paths: Iterable[pathlib.Path], samples: int, refused: Refusals
) -> list[Proposed]:
  """The first `samples` files that can be read, as candidates."""
  found = []
  for path in paths:
    if len(found) == samples:
      break
    # What cannot be read is told now, not when a person has to look at it.
    with refused.input(path):
      asset = assets.load(path)
      suffix = path.suffix.lower()
      found.append(Proposed(generator.name, path.read_bytes(), suffix, license=asset.license))
  return found


# --------------------------------------------------------------------------------------------------
# Retrieval
# --------------------------------------------------------------------------------------------------


def from_dataset(
  generator: Generator,
  project: Project,
  targets: Sequence[Wanting],
  samples: int,
  refused: Refusals,
) -> Iterator[list[Proposed]]:
  """The meshes of a folder whose silhouettes are most like the mask, the likest first."""
  silhouettes: dict[pathlib.Path, list[np.ndarray]] = {}
  for path in mesh_files(generator.path):
    with refused.input(path):
      silhouettes[path] = silhouettes_of(path)
  if not silhouettes:
    raise InputError(f"--generator {generator.name}=dataset:{generator.path} holds no mesh")

  for target in targets:
    wanted = in_square(poses.mask_of(project.blobs, target.mask))

    def likeness(path: pathlib.Path, wanted=wanted) -> float:
      return max(raycast.iou(wanted, seen) for seen in silhouettes[path])

    likest = sorted(silhouettes, key=likeness, reverse=True)
    yield of_files(generator, likest, samples, refused)


def silhouettes_of(path: pathlib.Path) -> list[np.ndarray]:
  """Silhouettes of a mesh from around, filled into squares. Raises Refused."""
  caster = raycast.Caster(assets.load(path).mesh)
  side = 2 * SILHOUETTE
  camera = cameras.camera_from_fov(side, side, np.radians(FOV_DEG))
  away = np.asarray([0.0, 0.0, DISTANCE])
  found = []
  for azimuth in AZIMUTHS:
    where = Pose(orbit(azimuth, ELEVATION), away, np.ones(3))
    found.append(in_square(caster.silhouette(where, camera)))
  return found


def in_square(mask_HW: np.ndarray) -> np.ndarray:
  """What is inside the mask's box, scaled into a square whose longer side it fills."""
  if not mask_HW.any():
    return np.zeros((SILHOUETTE, SILHOUETTE), bool)
  # the box
  rows = np.flatnonzero(mask_HW.any(1))
  columns = np.flatnonzero(mask_HW.any(0))
  inside = mask_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

  # in the middle of a square
  height, width = inside.shape
  side = max(height, width)
  top = (side - height) // 2
  left = (side - width) // 2
  square = np.zeros((side, side), np.uint8)
  square[top : top + height, left : left + width] = 255 * inside

  # of the size that is compared
  picture = Image.fromarray(square)
  small = picture.resize((SILHOUETTE, SILHOUETTE), Image.Resampling.BOX)
  return np.asarray(small) > 127


# --------------------------------------------------------------------------------------------------
# Models
# --------------------------------------------------------------------------------------------------


def from_model(
  generator: Generator,
  project: Project,
  targets: Sequence[Wanting],
  samples: int,
  refused: Refusals,
) -> Iterator[list[Proposed]]:
  """Samples of a model, drawn in batches over objects; what it draws is never refused."""
  del refused
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
