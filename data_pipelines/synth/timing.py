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
    count = len(mesh.faces)
    edges = np.sort(
      np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]),
      axis=1,
    )
    unique, index = np.unique(edges, axis=0, return_inverse=True)
    middle = lambda values, unique=unique: np.concatenate(
      [values, values[unique].mean(1, dtype=values.dtype)]
    )
    ab, bc, ca = index.reshape(3, count) + len(mesh.vertices)
    a, b, c = mesh.faces.T
    faces = np.concatenate(
      [np.stack(f, -1) for f in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
    ).astype(np.int32)
    mesh = dataclasses.replace(
      mesh,
      faces=faces,
      material=np.tile(mesh.material, 4),
      vertices=middle(mesh.vertices),
      uv=middle(mesh.uv),
      colours=middle(mesh.colours),
    )
  return mesh


def timed(work: Callable):
  """(result, seconds of this process)."""
  start = time.process_time()
  result = work()
  return result, time.process_time() - start


def encode(shown: render.View) -> list[bytes]:
  """What a record stores of a view: both images, the mask, the point map."""
  pair = [
    render.encode(render.over(c, shown.alpha_HW, (240, 240, 240)), "jpeg")
    for c in (shown.lit_HW3, shown.delit_HW3)
  ]
  return [*pair, render.encode(shown.mask_HW), shown.pointmap_HW3.astype(np.float16).tobytes()]


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
  # the mesh
  asset, reading = timed(lambda: assets.load(spec.mesh))
  asset = dataclasses.replace(asset, mesh=subdivided(asset.mesh, spec.triangles))
  textures = [m.texture.shape[:2] for m in asset.mesh.materials if m.texture is not None]
  print(
    f"{spec.mesh.name}: {len(asset.mesh.faces)} triangles, textures {textures}, "
    f"{spec.image_size} pixels, {spec.samples}^2 rays a pixel"
  )
  voxels, voxelising = timed(lambda: voxelize.voxelize(asset.mesh.vertices, asset.mesh.faces))
  scene, preparing = timed(lambda: render.Scene(asset.mesh, asset.source))

  # its views
  radius = float(np.linalg.norm(asset.mesh.vertices, axis=1).max())
  rng = np.random.default_rng(0)
  rendering, encoding = [], []
  for _ in range(spec.views):
    camera, azimuth = random_view(
      rng, ViewConfig(), image_size=spec.image_size, radius=radius, scale=1.0
    )
    lights = random_lights(rng, LightConfig(), azimuth)
    shown, seconds = timed(functools.partial(draw, scene, camera, lights, spec.samples))
    rendering.append(seconds)
    encoding.append(timed(functools.partial(encode, shown))[1])
  print(
    f"reading {reading:.2f}  preparing {preparing:.2f}  voxelising {voxelising:.2f} "
    f"({len(voxels)} voxels)"
  )
  print(
    f"a view: rendering {np.median(rendering):.2f} (at most {max(rendering):.2f})  "
    f"encoding images and mask {np.median(encoding):.2f}"
  )


def draw(scene: render.Scene, camera, lights, samples: int) -> render.View:
  return render.render(scene, camera, lights, samples=samples)
