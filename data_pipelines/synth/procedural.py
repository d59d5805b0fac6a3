"""Procedural objects: the data set that needs no download.

An object is a pure function of (seed, index): the family goes round-robin over the requested
families, so every family has the same share in any prefix of the data set; proportions and colours
come from a generator seeded by both numbers.

`python -m launch.make_examples objects` writes some as GLB files.
"""

from collections.abc import Callable, Sequence
import pathlib

import numpy as np
import trimesh

from data_pipelines.synth import families_furniture as furniture
from data_pipelines.synth import families_outdoors as outdoors
from data_pipelines.synth import families_things as things
from data_pipelines.synth import families_vessels as vessels
from data_pipelines.synth.palette import Palette, Part, draw_palette

FAMILIES: dict[str, Callable[[np.random.Generator, Palette], list[Part]]] = {
  "table": furniture.table,
  "chair": furniture.chair,
  "mug": vessels.mug,
  "lamp": furniture.lamp,
  "bottle": vessels.bottle,
  "arrow": things.arrow,
  "letter": things.letter,
  "crate": things.crate,
  "car": outdoors.car,
  "hammer": things.hammer,
  "shelf": furniture.shelf,
  "bowl": vessels.bowl,
  "dumbbell": things.dumbbell,
  "stairs": furniture.stairs,
  "tree": outdoors.tree,
  "stool": furniture.stool,
  "house": outdoors.house,
  "bed": furniture.bed,
  "aeroplane": outdoors.aeroplane,
}

# Object frame (z up) to glTF (y up), column form; assets.py undoes it on the way in.
Z_UP_TO_Y_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


def family_of(index: int, families: Sequence[str] = ()) -> str:
  """The family of object `index`; no `families` means all. Raises ValueError on a wrong one."""
  names = tuple(families) or tuple(FAMILIES)
  unknown = [name for name in names if name not in FAMILIES]
  if unknown:
    known = ", ".join(FAMILIES)
    raise ValueError(f"families: unknown {unknown}; known are {known}")
  # Round-robin: every prefix of the numbers has all families alike.
  return names[index % len(names)]


def make_parts(seed: int, index: int, families: Sequence[str] = ()) -> list[Part]:
  """The coloured solids of object `index`, z up, in free units."""
  # Colours first, then proportions: the family decides how many are drawn.
  rng = np.random.default_rng([seed, index])
  make = FAMILIES[family_of(index, families)]
  paint = draw_palette(rng)
  return make(rng, paint)


def make_scene(seed: int, index: int, families: Sequence[str] = ()) -> trimesh.Scene:
  """Object `index` as a trimesh scene (z up), one geometry with a PBR base colour per part."""
  scene = trimesh.Scene()
  parts = make_parts(seed, index, families)
  for i, part in enumerate(parts):
    material = trimesh.visual.material.PBRMaterial(
      baseColorFactor=_linear_factor(part.colour),
      metallicFactor=0.0,
      roughnessFactor=0.7,
    )
    mesh = part.mesh.copy()
    # trimesh keeps a material only with texture coordinates
    uv = np.zeros((len(mesh.vertices), 2))
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    name = f"part{i}"
    scene.add_geometry(mesh, geom_name=name, node_name=name)
  return scene


def _linear_factor(colour) -> list[float]:
  """glTF base colour factors are linear (float64 here); palettes are sRGB."""
  # IEC 61966-2-1, in float64: factors are stored as text with all digits.
  encoded = np.asarray(colour) / 255.0
  dark = encoded / 12.92
  base = (encoded + 0.055) / 1.055
  bright = base**2.4
  linear = np.where(encoded <= 0.04045, dark, bright)
  return [*linear, 1.0]


def write_glbs(out: pathlib.Path, *, seed: int, count: int, families: Sequence[str] = ()) -> None:
  """Writes objects 0..count-1 as y-up GLB files named <index>_<family>.glb."""
  out.mkdir(parents=True, exist_ok=True)
  for index in range(count):
    scene = make_scene(seed, index, families)
    # glTF is y up.
    scene.apply_transform(Z_UP_TO_Y_UP)
    family = family_of(index, families)
    scene.export(out / f"{index:05d}_{family}.glb")
