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
from sam3d_jax.files.mesh_formats.surfaces import GREY, MAX_UV
from sam3d_jax.files.mesh_formats.textures import Texture
from sam3d_jax.render.mesh import WHITE, Material

CLAMP, MIRROR = 33071, 33648  # wrap modes of samplers; any other repeats
MAX_BORDER = 4  # pictures by which a clamped one is continued each way
# Where the picture of a texture lies, the preferred first; None is the core's `source`.
SOURCES = ("EXT_texture_webp", "EXT_texture_avif", None, "MSFT_texture_dds", "KHR_texture_basisu")


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
    self._known: dict[Any, tuple[Material, np.ndarray | None]] = {}
    self.unmapped = 0  # textures of primitives that have no coordinates for them

  def look(
    self, index: Any, uv_sets: Mapping[int, np.ndarray], colours_V4: np.ndarray | None
  ) -> Look:
    """The look of a primitive with material `index`, None if it names none.

    uv_sets: number of a set -> (V, 2) as stored. colours_V4: linear vertex colours with alpha.
    """
    if index is None:
      return Look(GREY if colours_V4 is None else WHITE, None, None)
    entry = self._document.item("materials", index)
    factor_4, info = _base_colour(entry)
    mode = entry.get("alphaMode", "OPAQUE")
    cutoff = _cutoff(entry, mode)
    reference, uv = None, None
    if info is not None and (self._appearance or cutoff is not None):
      reference = _reference(info)
      uv = self._coordinates(reference, uv_sets)
    if uv is None:
      plain = Material(_rgb(factor_4))
      material, cutout = self._known.setdefault((index, None), (plain, None))
    else:
      uv, tiles = _wrapped(uv, self._sampler(reference))
      key = (index, tiles)
      if key not in self._known:
        self._known[key] = self._textured(factor_4, reference, tiles, cutoff)
      material, cutout = self._known[key]
      uv = np.stack([uv[:, 0], 1 - uv[:, 1]], 1)
      uv = np.clip(np.nan_to_num(uv.astype(np.float32)), -MAX_UV, MAX_UV)
    cut = None
    if cutoff is not None:
      cut = _cut(cutout, factor_4[3], colours_V4, cutoff)
    return Look(material, uv, cut)

  def _coordinates(
    self, reference: _Reference, uv_sets: Mapping[int, np.ndarray]
  ) -> np.ndarray | None:
    """(V, 2) float64 in the picture, origin upper left; None where the primitive has none."""
    if reference.coordinates not in uv_sets:
      self.unmapped += 1
      return None
    stored = uv_sets[reference.coordinates]
    transform = reference.transform_23
    with np.errstate(invalid="ignore", over="ignore"):
      return stored @ transform[:, :2].T + transform[:, 2]

  def _sampler(self, reference: _Reference) -> tuple[int, int]:
    """Wrap modes along u and v."""
    entry = self._document.item("textures", reference.texture)
    if "sampler" not in entry:
      return 0, 0
    sampler = self._document.item("samplers", entry["sampler"])
    return sampler.get("wrapS", 0), sampler.get("wrapT", 0)

  def _textured(
    self,
    factor_4: np.ndarray,
    reference: _Reference,
    tiles: tuple["_Tiling", "_Tiling"],
    cutoff: float | None,
  ) -> tuple[Material, np.ndarray | None]:
    """The material with its picture, and which texels of it are gone."""
    picture = self._picture(reference.texture)
    across, down = tiles
    rgb = down.laid(across.laid(picture.rgb_HW3, axis=1), axis=0)
    cutout = None
    if cutoff is not None and picture.alpha_HW is not None:
      shown = down.laid(across.laid(picture.alpha_HW, axis=1), axis=0)
      cutout = alpha.cutout(shown, float(factor_4[3]), cutoff)
    # A picture that is transparent everywhere has no hole to look through: its faces go.
    holes = cutout if cutout is not None and not cutout.all() else None
    if not self._appearance:
      return WHITE, cutout
    return Material(_rgb(factor_4), rgb, holes), cutout

  # --- Pictures -----------------------------------------------------------------------------------

  def _picture(self, texture: int) -> Texture:
    entry = self._document.item("textures", texture)
    choices = _sources(entry)
    if not choices:
      raise wrong(f"textures[{texture}] names no image")
    packed = "KHR_texture_basisu"
    # without a decoder for the last choice, what else there is
    if len(choices) > 1 and not gltf_codecs.available(packed):
      choices.pop(packed, None)
    kind, image = next(iter(choices.items()))
    if not is_count(image):
      raise wrong(f"textures[{texture}]: image {image!r}")
    if image not in self._pictures:
      data = self._image_bytes(image)
      if kind == packed:
        data = gltf_codecs.decode_basisu(data)
      self._pictures[image] = textures.decode(data, f"images[{image}]")
    return self._pictures[image]

  def _image_bytes(self, index: int) -> bytes:
    entry = self._document.item("images", index)
    if "bufferView" in entry:
      return bytes(self._document.view(entry["bufferView"])[0])
    if "uri" not in entry:
      raise wrong(f"images[{index}] has no data")
    return self._document.fetch(entry["uri"], f"images[{index}]", reason="missing_texture")


def _sources(texture: Mapping[str, Any]) -> dict[str | None, Any]:
  """The images that show a texture, by extension, the preferred first."""
  found = {}
  for name in SOURCES:
    holder = texture if name is None else extension(texture, name)
    if holder is not None and "source" in holder:
      found[name] = holder["source"]
  return found


def _base_colour(entry: Mapping[str, Any]) -> tuple[np.ndarray, Mapping[str, Any] | None]:
  """(4,) linear base colour with alpha, and the reference to its texture, if there is one."""
  glossy = extension(entry, "KHR_materials_pbrSpecularGlossiness")
  if glossy is not None:
    factor, texture = glossy.get("diffuseFactor"), glossy.get("diffuseTexture")
  else:
    rough = entry.get("pbrMetallicRoughness", {})
    factor, texture = rough.get("baseColorFactor"), rough.get("baseColorTexture")
  if factor is None:
    factor = (1, 1, 1, 1)
  return numbers(factor, 4, "a base colour"), texture


def _rgb(factor_4: np.ndarray) -> tuple[float, float, float]:
  return tuple(float(value) for value in factor_4[:3])


def _cutoff(entry: Mapping[str, Any], mode: str) -> float | None:
  """The alpha below which a surface is gone; None for an opaque material."""
  if mode == "MASK":
    return float(entry.get("alphaCutoff", alpha.MASK_CUTOFF))
  if mode == "BLEND":
    return alpha.BLEND_CUTOFF
  return None


def _cut(
  cutout_HW: np.ndarray | None, factor: float, colours_V4: np.ndarray | None, cutoff: float
) -> alpha.Cut | None:
  """What of a primitive is gone; None if nothing can be."""
  shown = None
  if colours_V4 is not None:
    shown = (colours_V4[:, 3] * factor).astype(np.float32)
  elif factor < cutoff:
    return alpha.Cut(cutout_HW, None, cutoff=2.0)  # above any alpha: all of it
  # where nothing is transparent there is nothing to look for
  if cutout_HW is None and (shown is None or shown.min(initial=1) >= cutoff):
    return None
  return alpha.Cut(cutout_HW, shown, cutoff)


def _reference(info: Mapping[str, Any]) -> _Reference:
  """A textureInfo with its KHR_texture_transform, if it has one."""
  index, coordinates = info.get("index"), info.get("texCoord", 0)
  transform_23 = np.eye(2, 3)
  moved = extension(info, "KHR_texture_transform")
  if moved is not None:
    coordinates = moved.get("texCoord", coordinates)
    angle = float(moved.get("rotation", 0.0))
    scale = numbers(moved.get("scale", (1, 1)), 2, "scale of a texture")
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    transform_23[:, :2] = turn * scale
    transform_23[:, 2] = numbers(moved.get("offset", (0, 0)), 2, "offset of a texture")
  if not is_count(index) or not is_count(coordinates):
    raise wrong(f"a texture {index!r} with coordinates {coordinates!r}")
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
    return (stored_V + self.before) / (1 + self.before + self.behind)

  def laid(self, pixels: np.ndarray, axis: int) -> np.ndarray:
    """What stands for the picture."""
    if self.mirrored:
      return np.concatenate([pixels, np.flip(pixels, axis)], axis)
    if not self.before and not self.behind:
      return pixels
    side = pixels.shape[axis]
    widths = [(0, 0)] * pixels.ndim
    widths[axis] = (self.before * side, self.behind * side)
    return np.pad(pixels, widths, mode="edge")


def _wrapped(
  uv_V2: np.ndarray, modes: tuple[int, int]
) -> tuple[np.ndarray, tuple[_Tiling, _Tiling]]:
  """Coordinates in the pictures that stand for the texture, and how these are laid out."""
  found, tilings = [], []
  for stored, mode in zip(uv_V2.T, modes, strict=True):
    tiling = _Tiling(mirrored=mode == MIRROR)
    if mode == CLAMP:
      stored, tiling = _clamped(stored)
    found.append(tiling.coordinates(stored))
    tilings.append(tiling)
  return np.stack(found, 1), tuple(tilings)


def _clamped(stored_V: np.ndarray) -> tuple[np.ndarray, _Tiling]:
  """Coordinates of a clamped axis and the picture continued as far as they go.

  Beyond MAX_BORDER pictures corners are moved to the border, which bends what lies between.
  """
  known = np.nan_to_num(stored_V)
  slightly = 1 / textures.MAX_TEXTURE  # beyond the edge: not worth another picture
  low, high = known.min(initial=0.0), known.max(initial=1.0)
  before = int(np.ceil(min(max(-low - slightly, 0), MAX_BORDER)))
  behind = int(np.ceil(min(max(high - 1 - slightly, 0), MAX_BORDER)))
  return np.clip(known, -before, 1 + behind), _Tiling(before, behind)
