"""A self-contained HTML sheet of examples: image, mask outline, point map, voxels on the image."""

import base64
from collections.abc import Iterable
import html
import io

import numpy as np
from PIL import Image

from data_pipelines.build import checks
from data_pipelines.format import schema
from data_pipelines.format.records import CorruptRecord
from data_pipelines.read import rows
from sam3d_jax.geometry import cameras

TILE = 256  # pixels a side of a picture
# control colours of a perceptually even ramp from dark violet over green to yellow
RAMP = np.array(
  [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float32
)
STYLE = "\n".join(
  (
    "body{font:14px sans-serif;margin:1.5em;background:#fff;color:#222}"
    "figure{display:inline-block;margin:0 .6em .6em 0}",
    "figcaption{font-size:12px;color:#666}"
    "img{width:256px;image-rendering:pixelated;border:1px solid #ccc}",
    "section{border-top:1px solid #ccc;padding:.6em 0}code{font-size:12px}.bad{color:#b00}"
    "table{border-collapse:collapse}",
    "td,th{padding:.1em .8em;text-align:left}pre{white-space:pre-wrap}",
  )
)


def colour_ramp(values: np.ndarray) -> np.ndarray:
  """Values in 0..1 -> (..., 3) uint8 colours."""
  place = np.clip(values, 0, 1) * (len(RAMP) - 1)
  low = np.minimum(place.astype(int), len(RAMP) - 2)
  part = (place - low)[..., None]
  return (RAMP[low] * (1 - part) + RAMP[low + 1] * part).astype(np.uint8)


def by_depth(depth: np.ndarray) -> np.ndarray:
  """Colours of depths, near bright; NaN gives grey."""
  known = np.isfinite(depth)
  if not known.any():
    return np.full((*depth.shape, 3), 200, np.uint8)
  near, far = np.percentile(depth[known], (2, 98))
  colours = colour_ramp(1 - (np.where(known, depth, near) - near) / max(far - near, 1e-6))
  return np.where(known[..., None], colours, np.uint8(200))


def outline(image_HW3: np.ndarray, mask_HW: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
  """The image with the mask's inner edge drawn on it."""
  padded = np.pad(mask_HW, 1)
  core = mask_HW & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
  return np.where((mask_HW & ~core)[..., None], np.array(colour, np.uint8), image_HW3)


def voxels_on_image(example: schema.Example, image_HW3: np.ndarray) -> np.ndarray:
  """Voxels projected with the pose, near bright, on the darkened image; squares of their size."""
  height, width = image_HW3.shape[:2]
  camera = checks.camera_of(example, width)
  pixels, depth = cameras.project(checks.voxel_points(example), camera)
  order = np.argsort(-depth)  # the nearest is drawn last
  pixels, depth = pixels[order], depth[order]

  # a square of pixels around every voxel's centre: (N, side, side) columns and rows
  voxel = camera.fx * float(example["scale"].max()) / schema.VOXEL_RESOLUTION / np.median(depth)
  side = max(1, round(voxel))
  reach = np.arange(side) - side // 2
  corner = np.floor(pixels).astype(int)
  column, row = np.broadcast_arrays(
    corner[:, None, None, 0] + reach[:, None], corner[:, None, None, 1] + reach
  )
  in_picture = (column >= 0) & (column < width) & (row >= 0) & (row < height)
  seen = (depth > 0)[:, None, None] & in_picture

  out = (image_HW3 * 0.4).astype(np.uint8)
  colours = np.broadcast_to(by_depth(depth)[:, None, None], (*row.shape, 3))
  out[row[seen], column[seen]] = colours[seen]
  return out


def pictures(example: schema.Example) -> list[tuple[str, np.ndarray]]:
  """(caption, picture) of everything that the example has.

  Raises CorruptRecord for undecodable images.
  """

  def has(*fields: str) -> bool:
    return all(schema.is_present(example, field) for field in fields)

  shown = []
  if has("image"):
    image = rows.decode_image(example["image"], "image", mode="RGB")
    shown.append(("image", image))
    outlined = image
    for field, colour in (("mask_full", (30, 90, 255)), ("mask", (255, 30, 30))):
      if has(field):
        mask = rows.decode_image(example[field], field, mode="L") > 0
        if mask.shape == image.shape[:2]:
          outlined = outline(outlined, mask, colour)
    if has("mask"):
      shown.append(("mask (red), whole object (blue)", outlined))
  if has("image_delit"):
    shown.append(("de-lit", rows.decode_image(example["image_delit"], "image_delit", mode="RGB")))
  if has("pointmap"):
    shown.append(("point map, depth", by_depth(example["pointmap"].astype(np.float32)[..., 2])))
  if has("image", "voxels", "rotation", "translation", "scale", "camera"):
    shown.append(("voxels on the image", voxels_on_image(example, image)))
  if has("voxels"):
    shown.append(("voxels, two sides", two_sides(example["voxels"])))
  for i, loser in enumerate(example.get("losers", ())):
    if len(loser["voxels"]):
      shown.append((f"loser {i + 1} ({loser['generator']})", two_sides(loser["voxels"])))
  return shown


def two_sides(voxels_N3: np.ndarray) -> np.ndarray:
  """The grid seen along x and along y, beside each other."""
  return np.concatenate([voxel_side(voxels_N3, axis) for axis in (0, 1)], axis=1)


def voxel_side(voxels_N3: np.ndarray, axis: int) -> np.ndarray:
  """Depth picture (64, 64, 3) of the grid seen along x or y, z up."""
  size = schema.VOXEL_RESOLUTION
  depth = np.full((size, size), np.nan, np.float32)
  for voxel in voxels_N3[np.argsort(-voxels_N3[:, axis].astype(int), kind="stable")]:
    depth[size - 1 - voxel[2], voxel[1 - axis]] = voxel[axis]
  return by_depth(depth)


def _figure(caption: str, picture: np.ndarray) -> str:
  image = Image.fromarray(picture)
  if max(image.size) > 2 * TILE:
    image.thumbnail((2 * TILE, 2 * TILE))
  buffer = io.BytesIO()
  image.save(buffer, "PNG")
  data = base64.b64encode(buffer.getvalue()).decode()
  caption = html.escape(caption)
  return (
    f'<figure><img src="data:image/png;base64,{data}" '
    f'alt="{caption}"><figcaption>{caption}</figcaption></figure>'
  )


def _section(place: str, example: schema.Example, findings: list[checks.Finding]) -> str:
  """One example: where it lies, what is wrong with it, its pictures."""
  try:
    figures = "".join(_figure(caption, picture) for caption, picture in pictures(example))
  except CorruptRecord as error:
    figures = f'<p class="bad">{html.escape(str(error))}</p>'
  bad = ""
  for finding in findings:
    bad += f'<p class="bad">{html.escape(finding.reason)}: {html.escape(finding.detail)}</p>'
  scalars = []
  for name in ("translation", "scale", "rating"):
    if schema.is_present(example, name):
      scalars.append(f"{name} {np.array2string(np.asarray(example[name]), precision=3)}")
  return (
    f"<section><b>{html.escape(place)}</b> <code>{html.escape(example['key'])}</code> "
    f"{html.escape(example['source'])} {html.escape(example['license'])}<br>"
    f"{html.escape(', '.join(scalars))}{bad}<div>{figures}</div></section>"
  )


def write_sheet(
  title: str, summary: str, rows: Iterable[tuple[str, schema.Example, list[checks.Finding]]]
) -> str:
  """The page. rows: (where the example lies, example, what is wrong with it); summary: plain text
  shown above them.
  """
  sections = "".join(_section(*row) for row in rows)
  return (
    '<!doctype html><html lang="en"><meta '
    f'charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    f"<h1>{html.escape(title)}</h1><pre>{html.escape(summary)}</pre>{sections}</html>\n"
  )
