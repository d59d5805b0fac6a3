"""From photos to scenes: the Python API.

    from sam3d_jax.inference import Reconstructor

    model = Reconstructor.from_release("checkpoints")
    scene = model("photo.jpg", ["cup.png", "spoon.png"])
    scene.save("out")

`launch.sample` is this with files around it. docs/inference.md has a page about it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import os
from typing import Any, NamedTuple

import numpy as np

from sam3d_jax.content_keys import example_key, key_words
from sam3d_jax.errors import InputError
from sam3d_jax.files.photos import Photo
from sam3d_jax.geometry import conditions, windows
from sam3d_jax.geometry.conditions import Condition
from sam3d_jax.inference import inputs, objects, weights
from sam3d_jax.inference.candidates import Candidate
from sam3d_jax.inference.objects import Phases
from sam3d_jax.inference.predictor import Predictor, Request, Started
from sam3d_jax.inference.rewards import Reward, mask_iou
from sam3d_jax.inference.scene import Scene

BATCH_SIZE = 32  # objects sampled at once


@dataclasses.dataclass(frozen=True)
class Choice:
  """How a sample of each object is chosen and placed.

  seed: of the noise, which otherwise depends on the photo, the mask and the sample's number alone.
  samples: drawn of each object. reward: of which the sample with the highest is kept; None: the
  first. refine: whether each object is fitted to its mask by render-and-compare.
  """

  seed: int = 0
  samples: int = 1
  reward: Reward | None = None
  refine: bool = False


class Drawn(NamedTuple):
  """One sample to draw, with whose it is."""

  photo: Photo
  position: int  # of the photo among the photos
  name: str  # of the object
  index: int  # of the sample
  condition: Condition
  content: np.ndarray  # (2,) uint32


class Reconstructor:
  """Reconstructs the masked objects of photos with a trained model.

  Samples depend on the weights, the seed, the photo and the mask: not on the batch they were drawn
  in, nor on the objects beside them. Every batch size is compiled once, when it is first used.
  """

  def __init__(self, predictor: Predictor, *, batch_size: int = BATCH_SIZE):
    """Takes a loaded model; from_release and from_checkpoint load one.

    Args:
      predictor: the model and everything that decides its samples.
      batch_size: objects sampled at once, of all photos of a call together.
    """
    if batch_size < 1:
      raise InputError(f"batch_size = {batch_size}: give at least 1")
    self.predictor = predictor
    self.batch_size = batch_size

  @classmethod
  def from_release(
    cls,
    folder: str | os.PathLike,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    shortcut: bool = False,
    batch_size: int = BATCH_SIZE,
  ) -> "Reconstructor":
    """Loads a published release folder (docs/release.md).

    Args:
      folder: with pipeline.yaml, ss_generator.* and ss_decoder.*.
      steps: of the sampler. None: as recorded with the weights.
      guidance: its strength. None: as recorded with the weights.
      shortcut: few-step sampling of a distilled model, 4 steps unless `steps` says otherwise.
      batch_size: objects sampled at once.

    Raises:
      InputError: the folder is no release, or lacks a part.
    """
    predictor = weights.from_release(
      os.fspath(folder),
      steps=steps,
      guidance=guidance,
      shortcut=shortcut,
    )
    return cls(predictor, batch_size=batch_size)

  @classmethod
  def from_checkpoint(
    cls,
    geometry: str | os.PathLike,
    *,
    decoder: str | os.PathLike | None = None,
    texture: str | os.PathLike | None = None,
    which: str = "ema",
    steps: int | None = None,
    guidance: float | None = None,
    shortcut: bool = False,
    batch_size: int = BATCH_SIZE,
  ) -> "Reconstructor":
    """Loads a model that was trained here.

    Args:
      geometry: work folder of a Geometry model.
      decoder: work folder of the structure VAE of its data. None: as the checkpoint says.
      texture: of a texture model, which this release does not have: leave it None.
      which: parameters of the checkpoints: "raw", "ema" or "ema:<decay>".
      steps, guidance, shortcut, batch_size: as in from_release.

    Raises:
      InputError: a folder holds no checkpoint, or one of another kind.
    """
    if texture is not None:
      raise InputError(
        f"texture = {os.fspath(texture)!r}: this release has no texture model yet; leave it out"
      )
    if decoder is not None:
      decoder = os.fspath(decoder)
    predictor = weights.from_checkpoint(
      os.fspath(geometry),
      decoder,
      which=which,
      steps=steps,
      guidance=guidance,
      shortcut=shortcut,
    )
    return cls(predictor, batch_size=batch_size)

  def __call__(
    self,
    image: inputs.Image | Sequence[inputs.Image],
    masks: inputs.Masks | Sequence[inputs.Masks] = None,
    pointmap: Any = None,
    *,
    seed: int = 0,
    samples: int = 1,
    reward: Reward | None = None,
    refine: bool = False,
    intrinsics: Sequence[float] | None = None,
    pointmap_frame: str = "pytorch3d",
    mask_orientation: str | None = None,
    pointmap_channels: Sequence[str] = (),
  ) -> Scene | list[Scene]:
    """Reconstructs the masked objects of a photo, or of several.

    Args:
      image: (H, W, 3) uint8 RGB, or a file of any form that docs/inference.md lists. A list of
        photos is one batch; `masks` and `pointmap` are then lists of the same length.
      masks: one for each object: (H, W) booleans or numbers, non-zero is object, or files; alone,
        in a list, or as {name: mask}. None: the alpha channel of the image.
      pointmap: camera-frame points (H, W, 3), NaN where unknown, of any size with the photo's
        aspect, or a file of any form that docs/inference.md lists. None: there is none, and poses
        are relative.
      seed: of the noise.
      samples: drawn of each object; the one with the highest reward is kept.
      reward: what chooses; None: the IoU of silhouette and mask.
      refine: fit each object's place to its mask by render-and-compare.
      intrinsics: fx, fy, cx, cy in pixels of the photo. None: of the point map, else assumed.
      pointmap_frame: of the points: pytorch3d (x left, y up, z forward), opencv or gltf.
      mask_orientation: how masks lie of a photo file that EXIF turns: "upright", "stored" (as the
        pixels in the file), None: as their sizes tell.
      pointmap_channels: of an OpenEXR file that holds more: one channel of depth, or three.

    Returns:
      The scene of the photo, or a list of scenes for a list of photos.

    Raises:
      InputError: an input that cannot be used, by name and with the remedy.
    """
    # The photos, whether one or several are given.
    several = inputs.is_sequence(image)
    if several:
      each = paired(image, masks, pointmap)
    else:
      each = [(image, masks, pointmap)]
    photos = []
    for one in each:
      photo = inputs.photo_of(
        *one,
        intrinsics=intrinsics,
        pointmap_frame=pointmap_frame,
        mask_orientation=mask_orientation,
        pointmap_channels=pointmap_channels,
      )
      photos.append(photo)

    # Of one sample there is nothing to choose.
    if samples < 1:
      raise InputError(f"samples = {samples}: give at least 1")
    if samples == 1:
      reward = None
    elif reward is None:
      reward = Reward("mask_iou", mask_iou)
    choice = Choice(
      seed=seed,
      samples=samples,
      reward=reward,
      refine=refine,
    )

    objects = sum(len(photo.masks) for photo in photos)
    scenes = list(self.reconstruct(photos, choice, count=samples * objects))
    return scenes if several else scenes[0]

  def reconstruct(
    self,
    photos: Iterable[Photo],
    choice: Choice,
    *,
    count: int,
    phases: Phases = contextlib.nullcontext,
  ) -> Iterator[Scene]:
    """The scenes of photos, in order, each as soon as its last sample is there.

    The device works on a batch while the host prepares the next and uses the one before.

    Args:
      photos: read and with a camera; taken one by one, so they may be read when asked for.
      choice: how a sample of each object is chosen.
      count: samples of all photos together, which decides the batch size: a power of two, at most
        batch_size.
      phases: measures the parts of the work.
    """
    if not count:
      return
    next_power_of_two = 1 << (count - 1).bit_length()
    bucket = min(self.batch_size, next_power_of_two)
    settings = self.settings(choice)

    # Everything is drawn on demand; a photo is done when the first sample of the next comes.
    rows = self._rows(photos, choice, phases)
    drawn = self._draw(rows, bucket, choice.seed, phases)
    for _, group in itertools.groupby(drawn, key=position_of):
      candidates = [candidate for _, candidate in group]
      yield scene_of(candidates, choice, settings, phases)

  def candidates(
    self, photos: Iterable[Photo], *, samples: int, seed: int, count: int
  ) -> Iterator[list[Candidate]]:
    """All samples of the objects of photos, photo by photo, none chosen.

    Args:
      photos: read and with a camera; taken one by one, so they may be read when asked for.
      samples: drawn of each object.
      seed: of the noise.
      count: samples of all photos together, which decides the batch size.
    """
    if not count:
      return
    next_power_of_two = 1 << (count - 1).bit_length()
    bucket = min(self.batch_size, next_power_of_two)
    rows = self._rows(photos, Choice(seed=seed, samples=samples), contextlib.nullcontext)
    drawn = self._draw(rows, bucket, seed, contextlib.nullcontext)
    for _, group in itertools.groupby(drawn, key=position_of):
      yield [candidate for _, candidate in group]

  def settings(self, choice: Choice) -> dict[str, Any]:
    """What decides the samples, for the record."""
    return {
      "weights": dict(self.predictor.identity),
      "sampler": dataclasses.asdict(self.predictor.sampler),
      "seed": choice.seed,
      "samples": choice.samples,
      "reward": choice.reward.name if choice.reward else None,
      "refine": choice.refine,
    }

  def _rows(self, photos: Iterable[Photo], choice: Choice, phases: Phases) -> Iterator[Drawn]:
    """The samples to draw, photo by photo."""
    for position, photo in enumerate(photos):
      image_key = example_key(photo.image_HW3)
      for name, mask_HW in photo.masks.items():
        with phases("prepare"):
          condition = self._condition(photo, name)
        for index in range(choice.samples):
          # The first sample of an object is that of a run which draws no more.
          number = [index] if index else []
          content = key_words(example_key(image_key, mask_HW, *number))
          yield Drawn(photo, position, name, index, condition, content)

  def _condition(self, photo: Photo, name: str) -> Condition:
    try:
      return conditions.condition(
        photo.image_HW3, photo.masks[name], photo.pointmap_HW3, self.predictor.form
      )
    except windows.MaskError as error:
      raise InputError(f"{photo.path or 'image'}: {name}: {error}") from error

  def _draw(
    self, rows: Iterator[Drawn], bucket: int, seed: int, phases: Phases
  ) -> Iterator[tuple[int, Candidate]]:
    """(position of the photo, candidate) of each row; one batch is always under way."""
    waiting: tuple[list[Drawn], Started] | None = None
    while chunk := list(itertools.islice(rows, bucket)):
      # The device gets its next batch before the host uses the one before.
      requests = [Request(row.condition.streams, row.content) for row in chunk]
      phase = "sample" if self.predictor.programs else "compile"
      with phases(phase):
        started = self.predictor.start(requests, bucket, seed)
      if waiting is not None:
        yield from self._collect(*waiting, phases)
      waiting = chunk, started
    if waiting is not None:
      yield from self._collect(*waiting, phases)

  def _collect(
    self, chunk: list[Drawn], started: Started, phases: Phases
  ) -> Iterator[tuple[int, Candidate]]:
    # Waits for the device.
    with phases("sample"):
      found = self.predictor.finish(started)
    for number, row in enumerate(chunk):
      candidate = Candidate(
        photo=row.photo,
        name=row.name,
        index=row.index,
        condition=row.condition,
        predictor=self.predictor,
        prediction=found.one(number),
      )
      yield row.position, candidate


def position_of(pair: tuple[int, Candidate]) -> int:
  """The photo that a candidate is of."""
  return pair[0]


def scene_of(
  candidates: Sequence[Candidate], choice: Choice, settings: Mapping[str, Any], phases: Phases
) -> Scene:
  """The scene of one photo's candidates."""
  # The samples of each object, in the masks' order.
  by_name: dict[str, list[Candidate]] = {}
  for candidate in candidates:
    by_name.setdefault(candidate.name, []).append(candidate)

  objects_found = []
  for samples in by_name.values():
    chosen = objects.resolve(samples, choice.reward, refine=choice.refine, phases=phases)
    objects_found.append(chosen)
  return Scene(candidates[0].photo, tuple(objects_found), settings)


def paired(images: Sequence, masks: Any, pointmaps: Any) -> list[tuple]:
  """(image, masks, point map) of each photo of a batch. Raises InputError for other lengths."""
  count = len(images)
  if not count:
    raise InputError("image is an empty list: give at least one photo")
  # Whatever is given must be given for each photo.
  columns = []
  for name, values in (("masks", masks), ("pointmap", pointmaps)):
    if values is None:
      values = [None] * count
    if not inputs.is_sequence(values) or len(values) != count:
      raise InputError(
        f"{name}: a list of {count} photos needs a list of {count}, one for each photo (None where "
        "there is nothing)"
      )
    columns.append(values)
  return list(zip(images, *columns, strict=True))
