"""Materials of glTF 2.0 as `Mesh` holds them: base colour, picture, coordinates, what alpha cuts.

The base colour is that of the metallic-roughness model, also of unlit materials, or the diffuse
colour of KHR_materials_pbrSpecularGlossiness where a material has that. Colours are linear,
pictures sRGB. What a sampler does beyond the picture's edge is put into picture and coordinates,
since a `Mesh` repeats every picture.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from sam3d_jax.files.mesh_formats import alpha, gltf_codecs, textures
from sam3d_jax.files.mesh_formats.gltf_document import Document, extension, is_count, numbers, wrong
from sam3d_jax.files.mesh_formats.surfaces import GREY, clipped_uv
from sam3d_jax.files.mesh_formats.textures import Texture
from sam3d_jax.render.mesh import WHITE, Material

REPEAT, CLAMP, MIRROR = 10497, 33071, 33648  # wrap modes of samplers
BASIS = "KHR_texture_basisu"
MAX_BORDER = 4  # pictures by which a clamped one is continued each way
# Pixels a side of a picture with its continuations: 200 MB of colours. A larger one is thinned.
MAX_CONTINUED = 8192
# Where the picture of a texture lies, the preferred first; None is the core's `source`.
SOURCES = ("EXT_texture_webp", "EXT_texture_avif", None, "MSFT_texture_dds", BASIS)


@dataclasses.dataclass(frozen=True)
class Look:
  """How a primitive looks."""

  material: Material
  uv: np.ndarray | None  # (V, 2) float32, origin lower left
  cut: alpha.Cut | None  # what alpha takes away


@dataclasses.dataclass(frozen=True)
class _Reference:
  """A material's use of a texture."""

  texture: int
  coordinates: int  # which set of texture coordinates
  transform_23: np.ndarray  # from stored coordinates (u, v, 1) to those in the picture


class Materials:
  """The materials of a file; each picture is decoded once.

  appearance: False leaves colours out, and decodes only pictures whose alpha cuts surface away.
  """

  def __init__(self, document: Document, appearance: bool):
    self._document = document
    self._appearance = appearance
    self._pictures: dict[int, Texture] = {}
    self._plain: dict[int, Material] = {}
    self._textured: dict[tuple, tuple[Material, np.ndarray | None]] = {}
    self.unmapped = 0  # textures of primitives that have no coordinates for them

  def look(
    self, index: Any, uv_sets: Mapping[int, np.ndarray], colours_V4: np.ndarray | None
  ) -> Look:
    """The look of a primitive with material `index`, None if it names none.

    uv_sets: number of a set -> (V, 2) as stored. colours_V4: linear vertex colours with alpha.
    """
    if index is None:
      plain = GREY if colours_V4 is None else WHITE
      return Look(plain, None, None)
    entry = self._document.item("materials", index)
    factor_4, info = _base_colour(entry)
    cutoff = _cutoff(entry)

    # Its picture, if it has one and anybody wants to see it.
    is_wanted = self._appearance or cutoff is not None
    placed = None
    if info is not None and is_wanted:
      reference = _reference(info)
      placed = self._coordinates(reference, uv_sets)
    if placed is None:
      material = self._plain.setdefault(index, Material(_rgb(factor_4)))
      return Look(material, None, _cut(None, factor_4, colours_V4, cutoff))

    # Picture and coordinates with what the sampler does beyond the edge.
    uv, tilings = _wrapped(placed, self._wrap_modes(reference))
    key = (index, tilings)
    if key not in self._textured:
      self._textured[key] = self._with_picture(factor_4, reference, tilings, cutoff)
    material, cutout = self._textured[key]
    # glTF counts v from the top
    upright = np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)
    cut = _cut(cutout, factor_4, colours_V4, cutoff)
    return Look(material, clipped_uv(upright), cut)

  def _coordinates(
    self, reference: _Reference, uv_sets: Mapping[int, np.ndarray]
  ) -> np.ndarray | None:
    """(V, 2) float64 in the picture, origin upper left; None where the primitive has none."""
    if reference.coordinates not in uv_sets:
      self.unmapped += 1
      return None
    stored = uv_sets[reference.coordinates]
    linear = reference.transform_23[:, :2]
    offset = reference.transform_23[:, 2]
    return stored @ linear.T + offset

  def _wrap_modes(self, reference: _Reference) -> tuple[int, int]:
    """Of the texture's sampler, along u and v."""
    texture = self._document.item("textures", reference.texture)
    if "sampler" not in texture:
      return REPEAT, REPEAT
    sampler = self._document.item("samplers", texture["sampler"])
    across = sampler.get("wrapS", REPEAT)
    down = sampler.get("wrapT", REPEAT)
    return across, down

  def _with_picture(
    self,
    factor_4: np.ndarray,
    reference: _Reference,
    tilings: tuple["_Tiling", "_Tiling"],
    cutoff: float | None,
  ) -> tuple[Material, np.ndarray | None]:
    """The material with its picture, and which texels of it are gone."""
    picture = self._picture(reference.texture)
    # holes first: for who looks at the shape alone they are all that counts
    cutout = None
    if cutoff is not None and picture.alpha_HW is not None:
      shown = _laid(picture.alpha_HW, tilings)
      cutout = alpha.cutout(shown, float(factor_4[3]), cutoff)
    if not self._appearance:
      return WHITE, cutout
    rgb = _laid(picture.rgb_HW3, tilings)
    material = Material(_rgb(factor_4), rgb, alpha.holes(cutout))
    return material, cutout

  # --- Pictures -----------------------------------------------------------------------------------

  def _picture(self, texture: int) -> Texture:
    image, is_basis = self._image_of(texture)
    if image not in self._pictures:
      data = self._image_bytes(image)
      if is_basis:
        data = gltf_codecs.decode_basisu(data)
      self._pictures[image] = textures.decode(data, f"images[{image}]")
    return self._pictures[image]

  def _image_of(self, texture: int) -> tuple[int, bool]:
    """The image that shows a texture, and whether it is one of Basis Universal."""
    choices = _sources(self._document.item("textures", texture))
    if not choices:
      raise wrong(f"textures[{texture}] names no image")
    # without a decoder what else there is will do
    if len(choices) > 1 and not gltf_codecs.available(BASIS):
      choices.pop(BASIS, None)
    kind, image = next(iter(choices.items()))
    if not is_count(image):
      raise wrong(f"textures[{texture}]: image {image!r}")
    return image, kind == BASIS

  def _image_bytes(self, index: int) -> bytes:
    name = f"images[{index}]"
    entry = self._document.item("images", index)
    if "bufferView" in entry:
      view, _ = self._document.view(entry["bufferView"])
      return bytes(view)
    if "uri" not in entry:
      raise wrong(f"{name} has no data")
    return self._document.fetch(entry["uri"], name, reason="missing_texture")


def _sources(texture: Mapping[str, Any]) -> dict[str | None, Any]:
  """The images that show a texture, by extension, the preferred first."""
  found = {}
  for name in SOURCES:
    # the core has it in the texture itself
    holder = texture
    if name is not None:
      holder = extension(texture, name) or {}
    if "source" in holder:
      found[name] = holder["source"]
  return found


# --- Colours --------------------------------------------------------------------------------------


def _base_colour(entry: Mapping[str, Any]) -> tuple[np.ndarray, Mapping[str, Any] | None]:
  """(4,) linear base colour with alpha, and the reference to its texture, if there is one."""
  # what the core says beside a glossy material is for readers that do not know it
  glossy = extension(entry, "KHR_materials_pbrSpecularGlossiness")
  if glossy is not None:
    factor = glossy.get("diffuseFactor")
    texture = glossy.get("diffuseTexture")
  else:
    rough = entry.get("pbrMetallicRoughness", {})
    factor = rough.get("baseColorFactor")
    texture = rough.get("baseColorTexture")
  if factor is None:
    return np.ones(4), texture
  return numbers(factor, 4, "a base colour"), texture


def _rgb(factor_4: np.ndarray) -> tuple[float, float, float]:
  red, green, blue, _ = map(float, factor_4)
  return red, green, blue


def _cutoff(entry: Mapping[str, Any]) -> float | None:
  """The alpha below which a surface is gone; None for an opaque material."""
  mode = entry.get("alphaMode", "OPAQUE")
  if mode == "MASK":
    return float(entry.get("alphaCutoff", alpha.MASK_CUTOFF))
  if mode == "BLEND":
    return alpha.BLEND_CUTOFF
  return None


def _cut(
  cutout_HW: np.ndarray | None,
  factor_4: np.ndarray,
  colours_V4: np.ndarray | None,
  cutoff: float | None,
) -> alpha.Cut | None:
  """What of a primitive is gone; None if nothing can be."""
  if cutoff is None:
    return None
  # alpha of vertices and material, which a texel's is multiplied with
  factor = float(factor_4[3])
  shown = None
  if colours_V4 is not None:
    shown = (colours_V4[:, 3] * factor).astype(np.float32)
  elif factor < cutoff:
    return alpha.EVERYTHING
  # where nothing is transparent there is nothing to look for
  vertices_seen = shown is None or shown.min(initial=1) >= cutoff
  if cutout_HW is None and vertices_seen:
    return None
  return alpha.Cut(cutout_HW, shown, cutoff)


def _reference(info: Mapping[str, Any]) -> _Reference:
  """A textureInfo with its KHR_texture_transform, if it has one."""
  moved = extension(info, "KHR_texture_transform") or {}
  index = info.get("index")
  coordinates = moved.get("texCoord", info.get("texCoord", 0))
  if not is_count(index) or not is_count(coordinates):
    raise wrong(f"a texture {index!r} with coordinates {coordinates!r}")

  # Scaled, turned from u towards -v (which points up), then moved.
  scale = moved.get("scale", (1, 1))
  angle = float(moved.get("rotation", 0.0))
  offset = moved.get("offset", (0, 0))
  cosine = np.cos(angle)
  sine = np.sin(angle)
  turn = np.array([[cosine, sine], [-sine, cosine]])
  transform_23 = np.zeros((2, 3))
  transform_23[:, :2] = turn * numbers(scale, 2, "scale of a texture")
  transform_23[:, 2] = numbers(offset, 2, "offset of a texture")
  return _Reference(index, coordinates, transform_23)


# --- Beyond the edge of a picture -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Tiling:
  """What stands for a picture along one axis, so that repeating it gives what the sampler says."""

  before: int = 0  # pictures in front that continue its first texels
  behind: int = 0  # pictures behind that continue its last
  mirrored: bool = False  # its mirror image follows

  def coordinates(self, stored_V: np.ndarray) -> np.ndarray:
    """Coordinates in what stands for the picture."""
    if self.mirrored:
      return stored_V / 2
    pictures = self.before + 1 + self.behind
    return (stored_V + self.before) / pictures

  def laid(self, pixels: np.ndarray, axis: int) -> np.ndarray:
    """What stands for the picture."""
    if self.mirrored:
      image = np.flip(pixels, axis)
      return np.concatenate([pixels, image], axis=axis)
    if not self.before and not self.behind:
      return pixels
    # every n-th texel, so that a few coordinates far out cannot ask for gigabytes
    pictures = self.before + 1 + self.behind
    step = -(-pixels.shape[axis] * pictures // MAX_CONTINUED)
    kept = np.arange(step // 2, pixels.shape[axis], step)
    pixels = pixels.take(kept, axis)
    # the first and last texels go on
    side = pixels.shape[axis]
    widths = [(0, 0)] * pixels.ndim
    widths[axis] = (self.before * side, self.behind * side)
    return np.pad(pixels, widths, mode="edge")


def _laid(pixels: np.ndarray, tilings: tuple[_Tiling, _Tiling]) -> np.ndarray:
  """What stands for a picture along both axes."""
  across, down = tilings
  row = across.laid(pixels, axis=1)
  return down.laid(row, axis=0)


def _wrapped(
  uv_V2: np.ndarray, modes: tuple[int, int]
) -> tuple[np.ndarray, tuple[_Tiling, _Tiling]]:
  """Coordinates in the pictures that stand for the texture, and how these are laid out."""
  found, tilings = [], []
  for stored, mode in zip(uv_V2.T, modes, strict=True):
    tiling = _Tiling()
    if mode == MIRROR:
      tiling = _Tiling(mirrored=True)
    elif mode == CLAMP:
      stored, tiling = _clamped(stored)
    found.append(tiling.coordinates(stored))
    tilings.append(tiling)
  return np.stack(found, axis=1), tuple(tilings)


def _clamped(stored_V: np.ndarray) -> tuple[np.ndarray, _Tiling]:
  """Coordinates of a clamped axis and the picture continued as far as they go.

  Beyond MAX_BORDER pictures corners are moved to the border, which bends what lies between.
  """
  known = np.nan_to_num(stored_V)
  low = known.min(initial=0.0)
  high = known.max(initial=1.0)
  before = _pictures_beyond(-low)
  behind = _pictures_beyond(high - 1)
  return np.clip(known, -before, 1 + behind), _Tiling(before, behind)


def _pictures_beyond(distance: float) -> int:
  """Whole pictures that continue an edge as far as coordinates go beyond it."""
  # less than a texel is not worth another picture
  worth = distance - 1 / textures.MAX_TEXTURE
  bounded = min(max(worth, 0.0), MAX_BORDER)
  return int(np.ceil(bounded))
