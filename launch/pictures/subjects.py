"""What is looked at: splats or a mesh, each with its box and a way to draw it."""

import dataclasses
import functools
import pathlib
from typing import NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.synth import lighting, render
from data_pipelines.synth.camera import Viewpoint
from data_pipelines.synth.lighting import Lights
from sam3d_jax.errors import InputError, InputNote, Refused
from sam3d_jax.files import meshes, splat_files
from sam3d_jax.geometry.cameras import OBJECT_FROM_GLTF, Camera
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.render import splats_picture, tiles
from sam3d_jax.render.splats import Splats
from sam3d_jax.render.splats_picture import Settings

# Rows of points of a file, turned to z up by the axis that points up in it.
TO_Z_UP = {
  "z": np.eye(3),
  "y": OBJECT_FROM_GLTF,
  # as TRELLIS writes splats
  "-y": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]),
}
SPLATS_UP = "z"
SOLID = 0.5  # opacity from which splats count for the box
MOST_TILE = 256
# Of meshes: from above, in the z-up frame.
LIGHTS = Lights(
  ambient_3=np.full(3, 0.45),
  directions_L3=np.array([[0.42, -0.53, 0.74], [-0.75, 0.5, 0.43]]),
  colours_L3=np.array([[0.6, 0.6, 0.6], [0.2, 0.2, 0.2]]),
)


class Drawn(NamedTuple):
  """A picture."""

  rgb_HW3: np.ndarray  # uint8 sRGB
  depth_HW: np.ndarray  # float32 camera z, NaN where nothing is


@dataclasses.dataclass(frozen=True)
class Look:
  """What all pictures of a command share."""

  background_3: tuple[float, float, float]  # 0..1
  kernel: str
  near: float
  lit: bool


class SplatSubject:
  """Splats. The program is compiled once a size, and again where pairs need more room."""

  def __init__(self, path: pathlib.Path, look: Look):
    self.name = str(path)
    self.splats = splat_files.read(path)
    self.look = look
    self.up = SPLATS_UP
    self.kind = f"{len(self.splats.opacities_N)} splats, kernel {look.kernel}"
    self._room: int | None = None
    self._has_told = False

  def box(self) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner of the solid splats' centres, in the file's coordinates."""
    finite = np.isfinite(self.splats.centres_N3).all(1)
    is_solid = self.splats.opacities_N >= SOLID
    chosen = finite & is_solid
    # Of a cloud that is nowhere solid all count.
    if not chosen.any():
      chosen = finite
    if not chosen.any():
      raise InputError(f"--input {self.name}: all centres are NaN or infinite: nothing to look at")
    centres = self.splats.centres_N3[chosen]
    return centres.min(0), centres.max(0)

  def draw(self, camera: Camera, where: Pose) -> Drawn:
    """Raises InputError for more splats than can be numbered."""
    picture = self._picture(camera, where)
    if int(picture.lost):
      # Once more with room for all.
      self._room = int(picture.needed)
      picture = self._picture(camera, where)

    # Said once, not for every frame.
    invalid = int(picture.invalid)
    if invalid and not self._has_told:
      warnings.warn(
        f"--input {self.name}: {invalid} splats hold NaN or infinity, or are too far or wide for "
        "float32; they are left out",
        InputNote,
        stacklevel=2,
      )
      self._has_told = True
    colours = np.clip(picture.colour_HW3, 0, 1)
    rgb = np.rint(255 * colours)
    return Drawn(rgb.astype(np.uint8), np.asarray(picture.depth_HW))

  def _picture(self, camera: Camera, where: Pose) -> splats_picture.Picture:
    background = self.look.background_3
    settings = self._settings(camera)
    try:
      return _splat_picture(self.splats, camera[:4], where, background, settings)
    except ValueError as error:
      raise InputError(f"--input {self.name}: {error}") from error

  def _settings(self, camera: Camera) -> Settings:
    """With the smallest tiles in which all splats can be numbered."""
    count = len(self.splats.opacities_N)
    tile = 16
    while tile < MOST_TILE and not tiles.fits(count, self._tiled(camera, tile).grid):
      tile *= 2
    return self._tiled(camera, tile)

  def _tiled(self, camera: Camera, tile: int) -> Settings:
    return Settings(
      camera.width,
      camera.height,
      kernel=self.look.kernel,
      near=self.look.near,
      tile=tile,
      slots=self._room,
    )


@functools.partial(jax.jit, static_argnames=("settings",))
def _splat_picture(splats: Splats, intrinsics, where: Pose, background, settings: Settings):
  camera = Camera(*intrinsics, settings.width, settings.height)
  return splats_picture.render(
    splats,
    camera,
    where,
    settings=settings,
    background_3=jnp.stack(background),
  )


class MeshSubject:
  """A mesh, ray cast with its textures."""

  def __init__(self, path: pathlib.Path, look: Look):
    self.name = str(path)
    try:
      found = meshes.read(path)
    except Refused as error:
      raise InputError(f"--input {path}: {error.detail}") from error
    if not len(found.mesh.faces):
      raise InputError(f"--input {path}: neither faces nor splats, only points: nothing is drawn")
    if not np.isfinite(found.mesh.vertices).all():
      raise InputError(f"--input {path}: vertices hold NaN or infinity: mend the mesh")
    self.mesh = found.mesh
    self.look = look
    self.up = found.up
    self.kind = f"{len(found.mesh.faces)} triangles"
    self._scene = render.Scene(found.mesh, self.name)

  def box(self) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner, in the file's coordinates."""
    return self.mesh.vertices.min(0), self.mesh.vertices.max(0)

  def draw(self, camera: Camera, where: Pose) -> Drawn:
    # Lights stand with the object; columns turn to z up by the transpose of what turns rows.
    lights = lighting.turned(LIGHTS, TO_Z_UP[self.up].T)
    try:
      view = render.render(self._scene, Viewpoint(camera, where), lights)
    except ValueError as error:
      raise InputError(
        f"--input {error}: place the camera so that all of it lies before it"
      ) from error
    colours = view.lit_HW3 if self.look.lit else view.delit_HW3
    background = 255 * np.array(self.look.background_3)
    return Drawn(render.over(colours, view.alpha_HW, background), view.depth_HW)


def load(path: pathlib.Path, look: Look) -> SplatSubject | MeshSubject:
  """What a file holds. Raises InputError."""
  if splat_files.holds_splats(path):
    return SplatSubject(path, look)
  return MeshSubject(path, look)
