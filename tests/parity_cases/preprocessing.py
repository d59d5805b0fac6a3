"""Parity cases h*: image, mask and point-map preprocessing."""

import re

import numpy as np

from sam3d_jax.geometry import normalisers, preprocessing, resizing, windows
from tests.parity import case

STREAMS = ("image", "mask", "rgb_image", "rgb_image_mask", "pointmap", "rgb_pointmap")


def photo(fixture):
  """Image and mask as floats in 0..1, divided in fp64 and rounded to fp32 as the reference does;
  point map (H, W, 3).
  """
  rgba = (fixture.inputs["rgba"] / 255).astype(np.float32)
  return rgba[..., :3], rgba[..., 3], np.moveaxis(fixture.inputs["pointmap"], 0, -1)


def planes(array_HWC):
  return np.moveaxis(array_HWC, -1, 0)


def as_uint8(array):
  return np.round(array * 255).astype(np.uint8)


def make_normaliser(name, options):
  """The normaliser that a fixture's name and published options stand for."""
  options = dict(options)
  clip = options.pop("clip_beyond_scale", None)
  if name == "ssi":
    return normalisers.ScaleShiftInvariant(**options)
  if name.startswith("object_centric"):
    options.pop("allow_scale_and_shift_override")
    return normalisers.ObjectCentric(
      clip_beyond=clip,
      quantile_drop=options.pop("quantile_drop_threshold"),
      fallback=not options.pop("raise_on_no_valid_points"),
      **options,
    )
  kind = normalisers.ApparentSize if name.startswith("apparent_size") else normalisers.Disparity
  return kind(clip_beyond=clip, **options)


@case("h1_")
def preprocessing_parts(fixture):
  image, mask, points = photo(fixture)
  out = {}
  for key in fixture.expected:
    name = key.removeprefix("out/")
    if match := re.fullmatch(r"bbox_([\d.]+)", name):
      out[key] = np.array(windows.mask_box(mask, float(match[1])))
    elif match := re.fullmatch(r"crop_f([\d.]+)_p([\d.]+)/(\w+)", name):
      out[key] = crop_part(image, mask, points, float(match[1]), float(match[2]), match[3])
  whole = windows.square_window(*mask.shape)
  out["out/pad_square/rgb_u8"] = as_uint8(planes(resizing.cut(image, whole)))
  out["out/pad_square/mask_u8"] = planes(resizing.cut(mask[..., None], whole)).astype(np.uint8)
  other = np.moveaxis(fixture.inputs["pointmap_other_res"], 0, -1)
  out["out/resize_all/pointmap_xz"] = planes(resizing.resize_pointmap(other, mask.shape))[[0, 2]]
  for name, options in fixture.kwargs["normalisers"].items():
    out |= normaliser_outputs(
      make_normaliser(name, options), f"out/norm/{name}", points, mask, fixture.expected
    )
    blind = f"out/norm/{name}_all_nan_mask"
    if f"{blind}/scale" in fixture.expected:
      nothing = fixture.inputs["mask_over_nan_only"][0]
      moments = make_normaliser(name, options).scale_shift(points, nothing)
      out |= {f"{blind}/scale": moments.scale, f"{blind}/shift": moments.shift}
  for key in fixture.expected:
    if match := re.fullmatch(r"out/clip_pointmap_([\d.]+)_z", key):
      out[key] = normalisers.clip_far(points, mask, float(match[1]))[..., 2]
  return out


def crop_part(image, mask, points, box_factor, padding, part):
  """One array of a crop fixture, before any resize."""
  window = windows.crop_window(mask, box_factor=box_factor, padding=padding)
  rgb = planes(resizing.cut(image, window))
  return {
    "shape": lambda: np.array(rgb.shape),
    "rgb_u8": lambda: as_uint8(rgb),
    "mask": lambda: planes(resizing.cut(mask[..., None], window)),
    "pointmap_z": lambda: resizing.cut(points, window, beyond_box=np.nan)[..., 2],
  }[part]()


def normaliser_outputs(normaliser, prefix, points, mask, expected):
  moments = normaliser.scale_shift(points, mask)
  normalised = normaliser.apply(points, moments)
  out = {
    f"{prefix}/scale": moments.scale,
    f"{prefix}/shift": moments.shift,
    f"{prefix}/pointmap_every4": planes(normalised)[:, ::4, ::4],
  }
  if f"{prefix}/denormalized_every4" in expected:
    out[f"{prefix}/denormalized_every4"] = planes(normaliser.invert(normalised, moments))[
      :, ::4, ::4
    ]
  return out


@case("h2_")
def preprocess_image(fixture):
  image, mask, points = photo(fixture)
  image_size = int(re.search(r"Resize\((\d+)\)", fixture.kwargs["ss"]["img_transform"])[1])
  pointmap_size = int(
    re.search(r"Resize\((\d+), NEAREST\)", fixture.kwargs["ss"]["pointmap_transform"])[1]
  )
  # the preprocessor alone, whose one resize of point maps is not yet that of their encoder
  sizes = {"image_size": image_size, "pointmap_size": pointmap_size, "resize_twice": False}
  full = preprocessing.preprocess(image, mask, points, streams=STREAMS, **sizes)
  other = preprocessing.preprocess(
    image, mask, np.moveaxis(fixture.inputs["pointmap_other_res"], 0, -1), streams=STREAMS, **sizes
  )
  slat = preprocessing.preprocess(
    image, (mask > 0).astype(np.float32), streams=STREAMS[:4], **sizes
  )
  values = {"ss": full, "slat": slat, "ss_pointmap_other_res": other}
  # the reference repeats the crop's scale and shift for the whole photo
  for group in values.values():
    group |= {f"rgb_{k}": group[k] for k in ("pointmap_scale", "pointmap_shift") if k in group}
  out = {}
  for key, ref in fixture.expected.items():
    _, group, name = key.split("/")
    if group in ("ss_nansum", "ss_nan_count"):
      array = full[name]
      out[key] = (
        np.nansum(array.astype(np.float64), (0, 1))
        if group == "ss_nansum"
        else np.isnan(array).sum((0, 1))
      )
    elif group in values:
      array = values[group][name]
      out[key] = subsampled(planes(array), ref.shape) if array.ndim == 3 else array
  return out | default_preprocessor(image, mask, fixture.expected)


def subsampled(array, shape):
  """Every n-th pixel, n from the fixture's shape (the reference keeps a strided copy of large
  outputs).
  """
  step = -(-array.shape[-1] // shape[-1])
  return array[..., ::step, ::step]


def default_preprocessor(image, mask, expected):
  """The release's fallback: background removed, tight box, 10 % padding, bicubic; outputs are named
  <stream>_stride<n>.
  """
  out = {}
  image = image * mask[..., None]
  for key in expected:
    if match := re.fullmatch(r"out/default_preprocessor_(\d+)/(\w+)_stride(\d+)", key):
      made = preprocessing.preprocess(
        image,
        mask,
        streams=("image", "mask"),
        image_size=int(match[1]),
        pointmap_size=1,
        box_factor=1.0,
        padding=0.1,
        interpolation="bicubic",
      )
      out[key] = planes(made[match[2]])[:, :: int(match[3]), :: int(match[3])]
  return out


@case("h3_")
def pointmap_two_resizes(fixture):
  """What reaches the point-map encoder, which finds it in its own size."""
  mask = fixture.inputs["mask"]
  made = preprocessing.preprocess(
    np.zeros((*mask.shape, 3), np.uint8),
    mask,
    fixture.inputs["pointmap"],
    image_size=fixture.kwargs["image_size"],
    pointmap_size=fixture.kwargs["input_size"],
    streams=("pointmap", "rgb_pointmap"),
  )
  return {
    key: made[key.removeprefix("out/")].reshape(ref.shape) for key, ref in fixture.expected.items()
  }
