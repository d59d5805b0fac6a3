"""Reading the pictures that users bring, in the forms in which they come.

Every refusal is an InputError that names the file; `what` says in its message what the file was to
be. Masks and label maps: mask_files.py; point maps: pointmaps.py; a photo with all that belongs to
it: photos.py.

The EXIF orientation is applied; grey, palette, CMYK and float photos become RGB; 16 bits become 8
(of 16-bit RGB Pillow keeps the upper byte); an alpha channel is dropped from the colours, and is
the mask if no other is given.
"""

import functools
import io
import pathlib
from typing import NamedTuple
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from sam3d_jax.errors import InputError
from sam3d_jax.files import blame

MAX_PIXELS = 178_000_000  # of a photo; Pillow decodes no more than 178 956 970
MIN_SIDE = 8  # pixels of a photo
ORIENTATION_TAG = 0x0112  # of EXIF
# formats whose further pictures belong to the first: a phone's photo with what was taken beside it
FIRST_OF_SEVERAL = ("MPO", "HEIF")
# What Pillow may decode of files and records of others. Not all that it knows: EPS and WMF are
# handed to other programs, and what nobody takes photos in need not be parsed.
FORMATS = (
  *("JPEG", "MPO", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "DIB", "GIF", "JPEG2000", "TGA"),
  *("PPM", "PSD", "SGI", "PCX", "ICO", "ICNS", "DDS"),
)
BAND = 1 << 20  # numbers that are brought to eight bits at once
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
INSTALL_HEIF = "pip install -r requirements-heif.txt"
AVIF_BRANDS = (b"avif", b"avis")
POSTSCRIPT_HEADS = (b"%!PS", b"\xc5\xd0\xd3\xc6")
RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pef")
JXL_HEADS = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")


def open_image(path: str | pathlib.Path, what: str) -> Image.Image:
  """A decoded image, upright. `what` is for messages. Raises InputError; OSError of the disk."""
  upright, _ = open_upright(path, what)
  return upright


def open_upright(path: str | pathlib.Path, what: str) -> tuple[Image.Image, int | None]:
  """A decoded image, upright, and the EXIF orientation that its pixels have in the file, None where
  it states none.

  Raises:
    InputError: no image that is read, by name and with the remedy.
    OSError: the disk failed, or the file may not be read.
  """
  try:
    with warnings.catch_warnings():
      # MAX_PIXELS is the limit here
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)
      # Of a file that it opens itself Pillow maps TIFF that lies on its side in the wrong shape.
      with open(path, "rb") as file, Image.open(file, formats=formats()) as image:
        if image.width * image.height > MAX_PIXELS:
          raise InputError(
            f"{what} {path} has {image.width} x {image.height} pixels; make it smaller (at most "
            f"{MAX_PIXELS:,} pixels)"
          )
        is_several = getattr(image, "n_frames", 1) > 1
        if is_several and image.format not in FIRST_OF_SEVERAL:
          raise InputError(
            f"{what} {path} is animated or has pages ({image.n_frames}); save the one picture that "
            "is meant"
          )
        # before it is decoded, because TIFF is turned and forgets it then
        orientation = image.getexif().get(ORIENTATION_TAG)
        image.load()
        upright = ImageOps.exif_transpose(image)
        upright.format = image.format  # which the copy forgets
        return upright, orientation
  except FileNotFoundError as error:
    raise InputError(f"{what} {path}: no such file") from error
  except IsADirectoryError as error:
    raise InputError(f"{what} {path} is a folder: give the file") from error
  except UnidentifiedImageError as error:
    raise InputError(f"{what} {path}: {why_unknown(path)}") from error
  except InputError:
    raise
  except Image.DecompressionBombError as error:
    raise InputError(
      f"{what} {path} has too many pixels; make it smaller (at most {MAX_PIXELS:,} pixels)"
    ) from error
  except MemoryError as error:
    raise InputError(f"{what} {path}: there is not enough memory for its pixels") from error
  # Pillow reports broken files in these ways
  except (OSError, SyntaxError, ValueError, EOFError) as error:
    if not blame.is_of_the_file(error):
      raise
    raise InputError(f"{what} {path}: cannot be decoded ({error}); save it again") from error


@functools.cache
def formats() -> tuple[str, ...]:
  """The formats of FORMATS that can be read here: HEIF where its plug-in is installed."""
  register_heif()
  Image.init()
  return tuple(name for name in FORMATS if name in Image.OPEN)


def open_bytes(data: bytes, most: int = MAX_PIXELS) -> Image.Image:
  """A picture in memory, decoded: of a format of `formats` and of `most` pixels.

  Raises what Pillow raises of what it cannot read, and ValueError for more pixels.
  """
  with warnings.catch_warnings():
    # `most` is the limit here
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    image = Image.open(io.BytesIO(data), formats=formats())
  check_pixels(image, most)
  image.load()
  return image


def check_pixels(image: Image.Image, most: int = MAX_PIXELS) -> None:
  """Raises ValueError for a picture of more pixels, before they are decoded."""
  if image.width * image.height > most:
    raise ValueError(f"{image.width} x {image.height} pixels, at most {most:,} are read")


@functools.cache
def register_heif() -> bool:
  """Whether HEIC can be read: adds its plug-in to Pillow's formats if it is installed."""
  try:
    import pillow_heif  # optional: requirements-heif.txt
  except ImportError:
    return False
  pillow_heif.register_heif_opener()
  return True


def why_unknown(path: str | pathlib.Path) -> str:
  """What to say of a file in which Pillow finds no picture, with the remedy if one is known."""
  # What the file begins with says more than its suffix.
  suffix = pathlib.Path(path).suffix.lower()
  with open(path, "rb") as file:
    head = file.read(16)
  brand = head[8:12] if head[4:8] == b"ftyp" else b""

  # Pictures that a plug-in would read.
  if brand in AVIF_BRANDS:
    if features.check("avif"):
      return "an AVIF picture that cannot be decoded; save it again"
    return "AVIF is not read by this Pillow: pip install 'pillow>=11.3', or save it as PNG"
  if brand in HEIF_BRANDS or suffix in HEIF_SUFFIXES:
    if register_heif():
      return "a HEIC picture that cannot be decoded; save it again"
    return f"HEIC is read with a plug-in: {INSTALL_HEIF}; or save it as JPEG or PNG"

  # Files that are not read, and why.
  if head.startswith(POSTSCRIPT_HEADS):
    return "PostScript (EPS) is a program, no picture, and is not run; save it as PNG"
  if suffix in RAW_SUFFIXES:
    return "a camera's raw file is not read; develop it to JPEG or PNG"
  if head.startswith(JXL_HEADS):
    return "JPEG XL is not read; save it as JPEG or PNG"
  return "not an image in a known format"


def to_eight_bit(image: Image.Image) -> Image.Image:
  """16-bit, 32-bit and float grey as 8-bit grey: 65535 -> 255, floats in 0..1 -> 0..255; values
  that fit in 8 bits stay.
  """
  if not image.mode.startswith(("I", "F")):
    return image

  # In bands of rows: in double precision a picture takes eight times the memory.
  stored = np.asarray(image)
  rows = max(1, BAND // max(1, image.width))
  bands = [slice(start, start + rows) for start in range(0, image.height, rows)]

  def numbers(band: slice) -> np.ndarray:
    return np.nan_to_num(stored[band].astype(np.float64))

  # The largest value tells the range: floats to 1, 16 bits, or 8 bits already.
  top = max(numbers(band).max() for band in bands)
  eight_bit = np.empty(stored.shape, np.uint8)
  for band in bands:
    values = numbers(band)
    if image.mode.startswith("F") and top <= 1:
      values = values * 255
    elif top > 255:
      values = values / 257
    eight_bit[band] = np.clip(np.round(values), 0, 255).astype(np.uint8)
  return Image.fromarray(eight_bit)


def read_image(
  path: str | pathlib.Path, what: str = "photo"
) -> tuple[np.ndarray, np.ndarray | None]:
  """(H, W, 3) uint8 and the alpha channel (H, W) uint8, None if there is none or it is opaque
  everywhere.
  """
  picture = read_picture(path, what)
  return picture.image_HW3, picture.alpha_HW


class Picture(NamedTuple):
  """A picture, upright: (H, W, 3) uint8; its alpha (H, W) uint8, None if it is opaque everywhere;
  the EXIF orientation that its pixels have in the file.
  """

  image_HW3: np.ndarray
  alpha_HW: np.ndarray | None
  orientation: int


def read_picture(path: str | pathlib.Path, what: str = "photo") -> Picture:
  """A picture as 8-bit RGB. Raises InputError; OSError of the disk."""
  opened, orientation = open_upright(path, what)
  image = to_eight_bit(opened)
  if min(image.size) < MIN_SIDE:
    raise InputError(
      f"{what} {path} is {image.width} x {image.height} pixels; at least {MIN_SIDE} each way are "
      "needed"
    )

  # Alpha in a channel of its own, premultiplied, or as a transparent colour; opaque alpha is none.
  alpha = None
  has_alpha = not {"A", "a"}.isdisjoint(image.getbands())
  if has_alpha or "transparency" in image.info:
    rgba = np.asarray(image.convert("RGBA"))
    alpha = rgba[..., 3]
    if alpha.min() == 255:
      alpha = None
  rgb = np.asarray(image.convert("RGB"))
  return Picture(rgb, alpha, orientation or 1)
