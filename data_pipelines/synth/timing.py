"""CPU time of what a builder does with one mesh: reading, voxelising, a view, encoding.

Seconds are those of one core (process time), the median of the views.
"""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
import time

import numpy as np

from data_pipelines.synth import assets, render, voxelize
from data_pipelines.synth.camera import ViewConfig, random_view
from data_pipelines.synth.lighting import LightConfig, random_lights
from sam3d_jax.render.mesh import Mesh


def subdivided(mesh: Mesh, triangles: int) -> Mesh:
  """The same surface with at least `triangles` triangles: each face is cut into four, as often as
  needed.
  """
  while len(mesh.faces) < triangles:
    mesh = _cut_into_four(mesh)
  return mesh


def _cut_into_four(mesh: Mesh) -> Mesh:
  """Each face cut at the middles of its edges, which neighbours share."""
  count = len(mesh.faces)
  a, b, c = mesh.faces.T
  first = mesh.faces[:, [0, 1]]
  second = mesh.faces[:, [1, 2]]
  third = mesh.faces[:, [2, 0]]
  ends = np.concatenate([first, second, third])
  # An edge is the same from either side.
  edges, index = np.unique(
    np.sort(ends, axis=1),
    axis=0,
    return_inverse=True,
  )

  def with_middles(values: np.ndarray) -> np.ndarray:
    middles = values[edges].mean(1, dtype=values.dtype)
    return np.concatenate([values, middles])

  # Three corners and the triangle in the middle.
  middles = index.reshape(3, count) + len(mesh.vertices)
  ab, bc, ca = middles
  parts = [
    np.stack([a, ab, ca], -1),
    np.stack([ab, b, bc], -1),
    np.stack([ca, bc, c], -1),
    np.stack([ab, bc, ca], -1),
  ]
  return dataclasses.replace(
    mesh,
    faces=np.concatenate(parts).astype(np.int32),
    material=np.tile(mesh.material, 4),
    vertices=with_middles(mesh.vertices),
    uv=with_middles(mesh.uv),
    colours=with_middles(mesh.colours),
  )


def timed(work: Callable):
  """(result, seconds of this process)."""
  start = time.process_time()
  result = work()
  return result, time.process_time() - start


def encode(shown: render.View) -> list[bytes]:
  """What a record stores of a view: both images, the mask, the point map."""
  stored = []
  for colour in (shown.lit_HW3, shown.delit_HW3):
    image = render.over(colour, shown.alpha_HW, (240, 240, 240))
    stored.append(render.encode(image, "jpeg"))
  stored.append(render.encode(shown.mask_HW))
  points = shown.pointmap_HW3.astype(np.float16)
  stored.append(points.tobytes())
  return stored


@dataclasses.dataclass(frozen=True)
class TimingSpec:
  """mesh: file. triangles: a mesh of fewer is subdivided until it has enough; textures stay.
  samples: rays a pixel along each axis.
  """

  mesh: pathlib.Path
  triangles: int = 0
  image_size: int = 518
  samples: int = 2
  views: int = 8


def measure(spec: TimingSpec) -> None:
  """Prints the seconds of every part. Raises InputError for a file that is no mesh."""
  # The mesh.
  asset, reading = timed(lambda: assets.load(spec.mesh))
  mesh = subdivided(asset.mesh, spec.triangles)
  textures = []
  for material in mesh.materials:
    if material.texture is not None:
      textures.append(material.texture.shape[:2])
  print(
    f"{spec.mesh.name}: {len(mesh.faces)} triangles, textures {textures}, "
    f"{spec.image_size} pixels, {spec.samples}^2 rays a pixel"
  )
  voxels, voxelising = timed(lambda: voxelize.voxelize(mesh.vertices, mesh.faces))
  scene, preparing = timed(lambda: render.Scene(mesh, asset.source))

  # Its views.
  radius = asset.radius
  rng = np.random.default_rng(0)
  rendering = []
  encoding = []
  for _ in range(spec.views):
    camera, azimuth = random_view(
      rng,
      ViewConfig(),
      image_size=spec.image_size,
      radius=radius,
      scale=1.0,
    )
    lights = random_lights(rng, LightConfig(), azimuth)
    draw = functools.partial(
      render.render,
      scene,
      camera,
      lights,
      samples=spec.samples,
    )
    shown, seconds = timed(draw)
    rendering.append(seconds)
    _, seconds = timed(functools.partial(encode, shown))
    encoding.append(seconds)

  print(
    f"reading {reading:.2f}  preparing {preparing:.2f}  voxelising {voxelising:.2f} "
    f"({len(voxels)} voxels)"
  )
  print(
    f"a view: rendering {np.median(rendering):.2f} (at most {max(rendering):.2f})  "
    f"encoding images and mask {np.median(encoding):.2f}"
  )
