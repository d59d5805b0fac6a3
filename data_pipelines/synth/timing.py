r"""CPU time of what a builder does with a mesh: reading, voxelising, preparing, a view, encoding.

    python -m data_pipelines.synth.timing MESH [--triangles 20000] [--image_size 518] \
        [--samples 2] [--views 8]

A mesh of fewer triangles is subdivided until it has enough; textures stay. Prints seconds of one
core (process time), median of the views.
"""

import argparse
from collections.abc import Callable
import dataclasses
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


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("mesh", type=pathlib.Path)
  parser.add_argument("--triangles", type=int, default=0)
  parser.add_argument("--image_size", type=int, default=518)
  parser.add_argument("--samples", type=int, default=2)
  parser.add_argument("--views", type=int, default=8)
  args = parser.parse_args()
  asset, reading = timed(lambda: assets.load(args.mesh))
  asset = dataclasses.replace(asset, mesh=subdivided(asset.mesh, args.triangles))
  textures = [m.texture.shape[:2] for m in asset.mesh.materials if m.texture is not None]
  print(
    f"{args.mesh.name}: {len(asset.mesh.faces)} triangles, textures {textures}, {args.image_size} "
    f"pixels, {args.samples}^2 rays a pixel"
  )
  voxels, voxelising = timed(lambda: voxelize.voxelize(asset.mesh.vertices, asset.mesh.faces))
  scene, preparing = timed(lambda: render.Scene(asset.mesh, asset.source))
  radius, rng, views, encodings = (
    float(np.linalg.norm(asset.mesh.vertices, axis=1).max()),
    np.random.default_rng(0),
    [],
    [],
  )
  for _ in range(args.views):
    camera, azimuth = random_view(
      rng, ViewConfig(), image_size=args.image_size, radius=radius, scale=1.0
    )
    lights = random_lights(rng, LightConfig(), azimuth)
    shown, seconds = timed(
      lambda c=camera, l=lights: render.render(scene, c, l, samples=args.samples)
    )
    views.append(seconds)
    encodings.append(timed(lambda s=shown: encode(s))[1])
  print(
    f"reading {reading:.2f}  preparing {preparing:.2f}  voxelising {voxelising:.2f} ({len(voxels)} "
    "voxels)"
  )
  print(
    f"a view: rendering {np.median(views):.2f} (at most {max(views):.2f})  encoding images and "
    f"mask {np.median(encodings):.2f}"
  )


if __name__ == "__main__":
  main()
