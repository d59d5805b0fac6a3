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

GREY = 200  # where no depth is known
# fields of masks -> colour of their outline, the later on top
OUTLINES = {"mask_full": (30, 90, 255), "mask": (255, 30, 30)}
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
  # each value lies between two colours of the ramp
  # each value lies between two colours of the ramp
  last = len(RAMP) - 1
  place = last * np.clip(values, 0, 1)
  low = np.minimum(place.astype(int), last - 1)
  part = (place - low)[..., None]
  darker, brighter = RAMP[low], RAMP[low + 1]
  colours = darker * (1 - part) + brighter * part
  return colours.astype(np.uint8)


def by_depth(depth: np.ndarray) -> np.ndarray:
  """Colours of depths, near bright; NaN gives grey."""
  known = np.isfinite(depth)
  if not known.any():
    return np.full((*depth.shape, 3), GREY, np.uint8)
  near, far = np.percentile(depth[known], (2, 98))
  span = max(far - near, 1e-6)
  filled = np.where(known, depth, near)
  colours = colour_ramp(1 - (filled - near) / span)
  return np.where(known[..., None], colours, np.uint8(GREY))


def outline(image_HW3: np.ndarray, mask_HW: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
  """The image with the mask's inner edge drawn on it."""
  # pixels whose four neighbours are in the mask too
  padded = np.pad(mask_HW, 1)
  above = padded[:-2, 1:-1]
  below = padded[2:, 1:-1]
  left = padded[1:-1, :-2]
  right = padded[1:-1, 2:]
  core = mask_HW & above & below & left & right

  # the others are the edge
  edge = mask_HW & ~core
  drawn = np.array(colour, np.uint8)
  return np.where(edge[..., None], drawn, image_HW3)


def voxels_on_image(example: schema.Example, image_HW3: np.ndarray) -> np.ndarray:
  """Voxels projected with the pose, near bright, on the darkened image; squares of their size."""
  # from far to near, so that the nearest is drawn last
  height, width = image_HW3.shape[:2]
  camera = checks.camera_of(example, width)
  pixels, depth = cameras.project(checks.voxel_points(example), camera)
  order = np.argsort(-depth)
  pixels, depth = pixels[order], depth[order]

  # a square of pixels around every voxel's centre: (N, side, side) columns and rows
  side_in_space = float(example["scale"].max()) / schema.VOXEL_RESOLUTION
  side = max(1, round(camera.fx * side_in_space / np.median(depth)))
  reach = np.arange(side) - side // 2
  corner = np.floor(pixels).astype(int)
  columns = corner[:, None, None, 0] + reach[:, None]
  rows = corner[:, None, None, 1] + reach
  columns, rows = np.broadcast_arrays(columns, rows)

  # those in the picture
  in_width = (columns >= 0) & (columns < width)
  in_height = (rows >= 0) & (rows < height)
  in_front = (depth > 0)[:, None, None]
  seen = in_front & in_width & in_height

  darkened = (image_HW3 * 0.4).astype(np.uint8)
  colours = by_depth(depth)[:, None, None]
  colours = np.broadcast_to(colours, (*rows.shape, 3))
  darkened[rows[seen], columns[seen]] = colours[seen]
  return darkened


def pictures(example: schema.Example) -> list[tuple[str, np.ndarray]]:
  """(caption, picture) of everything that the example has.

  Raises CorruptRecord for undecodable images.
  """

  def has(*fields: str) -> bool:
    return all(schema.is_present(example, field) for field in fields)

  # the photo and its masks
  shown = []
  if has("image"):
    image = rows.decode_image(example["image"], "image", mode="RGB")
    shown.append(("image", image))
    outlined = image
    for field, colour in OUTLINES.items():
      if not has(field):
        continue
      mask = rows.decode_image(example[field], field, mode="L") > 0
      if mask.shape == image.shape[:2]:
        outlined = outline(outlined, mask, colour)
    if has("mask"):
      shown.append(("mask (red), whole object (blue)", outlined))
  if has("image_delit"):
    delit = rows.decode_image(example["image_delit"], "image_delit", mode="RGB")
    shown.append(("de-lit", delit))
  if has("alpha"):
    alpha = rows.decode_image(example["alpha"], "alpha", mode="L")
    shown.append(("alpha", np.repeat(alpha[..., None], 3, axis=-1)))

  # its geometry
  if has("pointmap"):
    depth = example["pointmap"][..., 2].astype(np.float32)
    shown.append(("point map, depth", by_depth(depth)))
  if has("depth"):
    shown.append(("depth", by_depth(example["depth"].astype(np.float32))))
  if has("image", "voxels", "camera", *schema.POSE_FIELDS):
    shown.append(("voxels on the image", voxels_on_image(example, image)))
  if has("voxels"):
    shown.append(("voxels, two sides", two_sides(example["voxels"])))

  # what lost to it
  for number, loser in enumerate(example.get("losers", ()), 1):
    if len(loser["voxels"]):
      caption = f"loser {number} ({loser['generator']})"
      shown.append((caption, two_sides(loser["voxels"])))
  return shown


def two_sides(voxels_N3: np.ndarray) -> np.ndarray:
  """The grid seen along x and along y, beside each other."""
  return np.concatenate([voxel_side(voxels_N3, axis) for axis in (0, 1)], axis=1)


def voxel_side(voxels_N3: np.ndarray, axis: int) -> np.ndarray:
  """Depth picture (64, 64, 3) of the grid seen along x or y, z up."""
  size = schema.VOXEL_RESOLUTION
  depth = np.full((size, size), np.nan, np.float32)
  # from far to near, so that the nearest is drawn last
  order = np.argsort(-voxels_N3[:, axis].astype(int), kind="stable")
  for voxel in voxels_N3[order]:
    row = size - 1 - voxel[2]
    column = voxel[1 - axis]
    depth[row, column] = voxel[axis]
  return by_depth(depth)


def _figure(caption: str, picture: np.ndarray) -> str:
  """A picture that the page itself holds."""
  # as PNG, not larger than is looked at
  image = Image.fromarray(picture)
  largest = 2 * TILE
  if max(image.size) > largest:
    image.thumbnail((largest, largest))
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
  # pictures
  try:
    figures = "".join(_figure(caption, picture) for caption, picture in pictures(example))
  except CorruptRecord as error:
    figures = f'<p class="bad">{html.escape(str(error))}</p>'

  # what is wrong
  bad = ""
  for finding in findings:
    reason, detail = html.escape(finding.reason), html.escape(finding.detail)
    bad += f'<p class="bad">{reason}: {detail}</p>'

  # a few numbers
  numbers = []
  for name in ("translation", "scale", "rating"):
    if schema.is_present(example, name):
      value = np.asarray(example[name])
      numbers.append(f"{name} {np.array2string(value, precision=3)}")

  place = html.escape(place)
  key = html.escape(example["key"])
  source = html.escape(example["source"])
  license = html.escape(example["license"])
  listed = html.escape(", ".join(numbers))
  return (
    f"<section><b>{place}</b> <code>{key}</code> "
    f"{source} {license}<br>"
    f"{listed}{bad}<div>{figures}</div></section>"
  )


def write_sheet(
  title: str, summary: str, rows: Iterable[tuple[str, schema.Example, list[checks.Finding]]]
) -> str:
  """The page. rows: (where the example lies, example, what is wrong with it); summary: plain text
  shown above them.
  """
  title = html.escape(title)
  summary = html.escape(summary)
  sections = "".join(_section(*row) for row in rows)
  return (
    '<!doctype html><html lang="en"><meta '
    f'charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    f"<h1>{title}</h1><pre>{summary}</pre>{sections}</html>\n"
  )
