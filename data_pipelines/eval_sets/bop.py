"""BOP-format datasets (bop.felk.cvut.cz: LM-O, YCB-V, HOPE, HB, ...) as an evaluation set.

    ROOT/models_eval or models/   obj_000001.ply (millimetres), models_info.json
    ROOT/<split>/000002/          rgb (or gray)/000003.png|jpg|tif   depth/000003.png|tif
                                  mask_visib/000003_000001.png
                                  scene_gt.json   scene_camera.json   scene_gt_info.json (optional)
    ROOT/test_targets_bop19.json  optional: of the split "test", only the images and objects
                                  that it lists

One item is one object instance in one image. As the BOP challenge does, instances of which less
than 10 % is visible are left out, and those that span fewer than 3 x 3 pixels. Conversions: the
OpenCV camera frame (x right, y down) becomes ours, the centre of the first pixel moves from (0, 0)
to (0.5, 0.5), millimetres of depth and pose become metres. Meshes stay in millimetres in their own
frame; the pose's scale is 0.001.

Scenes of several sensors (IPD, XYZ-IBD, HOT3D) have a set of files for each, scene_gt_cam1.json,
rgb_cam1, depth_cam1 and so on, of which one is read.
"""

from collections.abc import Sequence
import itertools
import pathlib
from typing import Any
import warnings

import numpy as np

from data_pipelines.eval_sets.item import Item
from sam3d_jax.errors import InputError, InputNote
from sam3d_jax.evaluation import surface
from sam3d_jax.files import blame, camera_files, photos, pointmaps, texts
from sam3d_jax.geometry.cameras import AXES
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.render.mesh import Mesh

MIN_VISIBLE = 0.1  # share of an instance's pixels
# groups, by the least visible share
LEVELS = ((0.9, "visible 90-100 %"), (0.5, "visible 50-90 %"), (0.0, "visible 10-50 %"))
FLIP = np.array(AXES["opencv"])  # OpenCV's camera axes seen from ours
MAX_DIGITS = 9  # of the number of an image
METRE = 0.001  # of a millimetre
PICTURE_FOLDERS = ("rgb", "gray")
PICTURE_SUFFIXES = (".png", ".jpg", ".tif", ".jpeg", ".tiff")
DEPTH_SUFFIXES = (".png", ".tif", ".tiff")
TRUTH = "scene_gt"  # name of the JSON file with the poses


class BopSet:
  """The instances of a split. Images and meshes are read when an item is asked for."""

  def __init__(self, root: str | pathlib.Path, split: str = "test", sensor: str | None = None):
    """Lists the instances of a split.

    Args:
      root: folder of the dataset.
      split: the folder of its scenes.
      sensor: of scenes of several, the one that is read, such as cam1.

    Raises:
      InputError: the split, its truth or the models are not there, a file is not as it should be,
        or no instance is to be scored.
    """
    self.root = pathlib.Path(root)
    folder = self.root / split
    if not folder.is_dir():
      raise InputError(_no_split(self.root, root, split))
    self.models = _first_folder(self.root, ("models_eval", "models"))
    if self.models is None:
      raise InputError(
        f"--bop {root} has neither models_eval nor models, the folder of obj_000001.ply and so on"
      )

    # Of the split "test" the challenge scores only some images and objects.
    targets = None
    if split == "test":
      targets = read_targets(self.root / "test_targets_bop19.json")

    # Every instance that is to be scored, in the order of scenes and images.
    self._scenes: dict[int, Scene] = {}
    self._instances = []
    for path in scene_folders(folder, sensor):
      number = int(path.name)
      scene = Scene(path, sensor)
      self._scenes[number] = scene
      for image, place, truth in scene.instances(number, targets):
        self._instances.append((number, image, place, truth))
    if not self._instances:
      raise InputError(
        f"--bop {folder} holds no instance of which {MIN_VISIBLE:.0%} or more is visible"
      )

    self.names = []
    for number, image, place, truth in self._instances:
      thing = truth["obj_id"]
      self.names.append(f"{number:06d}-{image:06d}-{place:06d}-obj_{thing:06d}")
    # What a report says was evaluated.
    self.identity = {
      "set": f"bop {self.root.name} {split}",
      "instances": len(self.names),
      "models": self.models.name,
    }
    if sensor is not None:
      self.identity["sensor"] = sensor
    self._meshes: dict[int, Mesh] = {}

  def __getitem__(self, index: int) -> Item:
    number, image, place, truth = self._instances[index]
    scene = self._scenes[number]
    photo = scene.photo(image)
    mask_file = scene.part("mask_visib") / f"{image:06d}_{place:06d}.png"
    return Item(
      name=self.names[index],
      image_HW3=photo.image_HW3,
      mask_HW=photo.read_mask(mask_file, "BOP mask"),
      truth=self._mesh(truth["obj_id"]),
      pose=pose(truth, scene.truth_file),
      pointmap_HW3=photo.pointmap_HW3,
      camera=photo.camera,
      subject=f"object {truth['obj_id']}",
      group=level_of(scene.visible(image, place)),
    )

  def _mesh(self, number: int) -> Mesh:
    """The mesh of an object, read once."""
    if number not in self._meshes:
      path = self.models / f"obj_{number:06d}.ply"
      try:
        found = surface.load_surface(path)
      except surface.SurfaceError as error:
        raise InputError(f"--bop: {error}") from error
      self._meshes[number] = found.mesh
    return self._meshes[number]


def _no_split(folder: pathlib.Path, root: str | pathlib.Path, split: str) -> str:
  """What to say where the folder of a split is missing; `root` is as it was given."""
  # Which splits there are, by their scenes.
  found = []
  if folder.is_dir():
    found = sorted(path.parent.parent.name for path in folder.glob(f"*/*/{TRUTH}*.json"))
  said = f"--bop {root} has no folder {split}"
  if found:
    splits = ", ".join(dict.fromkeys(found))
    return f"{said}; give --split, one of {splits}"
  return f"{said} with scenes (<split>/000001/scene_gt.json)"


def _first_folder(root: pathlib.Path, names: Sequence[str]) -> pathlib.Path | None:
  for name in names:
    folder = root / name
    if folder.is_dir():
      return folder
  return None


def scene_folders(folder: pathlib.Path, sensor: str | None) -> list[pathlib.Path]:
  """The scenes of a split that have their truth, by name.

  Raises InputError, saying what is missing and what is there, if none has. Warns (InputNote) of
  those that have not.
  """
  scenes = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.isdigit()]
  file = f"{of_sensor(TRUTH, sensor)}.json"
  with_truth = [path for path in scenes if (path / file).is_file()]
  without = [path for path in scenes if path not in with_truth]
  if not scenes:
    raise InputError(f"--bop {folder} holds no scenes, folders such as 000001 with {file}")
  if with_truth and without:
    listed = ", ".join(path.name for path in without)
    warnings.warn(
      f"--bop {folder}: passed over, for want of {file}: {listed}", InputNote, stacklevel=2
    )
  if with_truth:
    return with_truth

  # What is there instead: the truth of other sensors, or none.
  held = sorted(path.name for path in scenes[0].iterdir())
  sensors = []
  for path in sorted(scenes[0].glob(f"{TRUTH}*.json")):
    other = path.stem.removeprefix(TRUTH).removeprefix("_")
    if other != "info" and not other.startswith("info_"):
      sensors.append(other)
  named = [f"--sensor {other}" for other in sensors if other]
  remedy = "take a split with public truth (--split)"
  if named:
    remedy = f"name one of its sensors: {', '.join(named)}"
  elif sensors:
    remedy = "leave --sensor out"
  raise InputError(
    f"--bop {scenes[0]} has no {file}, the true poses; it has {', '.join(held) or 'nothing'}: "
    f"{remedy}"
  )


def of_sensor(name: str, sensor: str | None) -> str:
  """The name of a file or folder for one of several sensors."""
  return name if sensor is None else f"{name}_{sensor}"


def level_of(visible: float) -> str:
  """The group of an instance by its visible share, 0..1."""
  # From the most visible down.
  for least, name in LEVELS:
    if visible >= least:
      return name
  raise ValueError(f"a visible share lies in 0..1, got {visible}")


class Scene:
  """The JSON files of one scene folder."""

  def __init__(self, folder: pathlib.Path, sensor: str | None = None):
    """Reads the folder's JSON. Raises InputError naming the file that cannot be read."""
    self.folder = folder
    self.sensor = sensor
    self.truth_file = self._json(TRUTH)
    self.truth = read_images(self.truth_file, list)
    self.camera_file = self._json("scene_camera")
    self.cameras = read_images(self.camera_file, dict)
    self.info_file = self._json("scene_gt_info")
    self.info = read_images(self.info_file, list) if self.info_file.exists() else {}

  def _json(self, name: str) -> pathlib.Path:
    return self.folder / f"{of_sensor(name, self.sensor)}.json"

  def part(self, name: str) -> pathlib.Path:
    """A folder of the scene, that of the sensor."""
    return self.folder / of_sensor(name, self.sensor)

  def instances(self, scene: int, targets: set | None):
    """(image, place in the image's list, entry of scene_gt.json) of what is to be scored."""
    # Images are named by their numbers, and 10 comes after 9.
    for name in sorted(self.truth, key=int):
      image = int(name)
      for place, entry in enumerate(self.truth[name]):
        where = f"image {image}, instance {place}"
        number = value_of(entry, "obj_id", int, self.truth_file, where)
        if targets is not None and (scene, image, number) not in targets:
          continue
        is_visible = self.visible(image, place) >= MIN_VISIBLE
        if is_visible and self.is_large(image, place):
          yield image, place, entry

  def visible(self, image: int, place: int) -> float:
    """Visible share of an instance; 1 where the dataset does not say."""
    entry = self._info_of(image, place)
    if entry is None:
      return 1.0
    where = f"image {image}, instance {place}"
    return float(value_of(entry, "visib_fract", (int, float), self.info_file, where))

  def is_large(self, image: int, place: int) -> bool:
    """Whether the visible part spans 3 x 3 pixels, the least that can be cropped; true where the
    dataset does not say.
    """
    entry = self._info_of(image, place)
    if entry is None:
      return True
    box = entry.get("bbox_visib", [0, 0, 3, 3])
    # x, y, width, height
    return min(box[2:]) >= 3

  def _info_of(self, image: int, place: int) -> dict | None:
    """What scene_gt_info.json says of an instance; None if it says nothing of the image."""
    entries = self.info.get(str(image))
    if not entries:
      return None
    # Both files list the instances of an image in the same order.
    if place >= len(entries):
      raise InputError(
        f"{self.info_file}: image {image} has {len(entries)} instances, {self.truth_file.name} has "
        f"{len(self.truth[str(image)])}"
      )
    return entries[place]

  def picture(self, image: int) -> pathlib.Path:
    """The file of an image. Raises InputError if there is none."""
    # HOT3D names the folder of a sensor after it alone.
    folders = [self.part(name) for name in PICTURE_FOLDERS]
    if self.sensor is not None:
      folders.append(self.folder / self.sensor)
    for folder, suffix in itertools.product(folders, PICTURE_SUFFIXES):
      path = folder / f"{image:06d}{suffix}"
      if path.exists():
        return path
    names = " nor ".join(folder.name for folder in folders)
    raise InputError(f"{self.folder}: image {image:06d} is in neither {names}")

  def depth(self, image: int) -> pathlib.Path | None:
    """The file of an image's depth, None if the scene has none.

    Raises InputError for one of another form.
    """
    # In a form that is read.
    folder = self.part("depth")
    for suffix in DEPTH_SUFFIXES:
      path = folder / f"{image:06d}{suffix}"
      if path.exists():
        return path

    # In another one, which would be left out without a word; or for other images only.
    others = sorted(path.name for path in folder.glob(f"{image:06d}.*"))
    if others:
      raise InputError(
        f"{folder / others[0]}: depth is read from {', '.join(DEPTH_SUFFIXES)}; convert it"
      )
    if folder.is_dir() and any(folder.iterdir()):
      warnings.warn(
        f"{folder} has no depth of image {image:06d}: it is taken without a point map",
        InputNote,
        stacklevel=2,
      )
    return None

  def photo(self, image: int) -> photos.Photo:
    """The picture with its camera and, where there is a depth image, its point map in metres."""
    # BOP counts pixels from the centre of the first.
    entry = self._entry(image)
    where = f"image {image}"
    k = value_of(entry, "cam_K", list, self.camera_file, where)
    fx, fy, cx, cy = camera_files.to_intrinsics(np.array(k), f"{self.camera_file}: {where}: cam_K")
    photo = photos.read_photo(self.picture(image))
    photo = photo.with_camera((fx, fy, cx + 0.5, cy + 0.5))

    # depth_scale is the millimetres that a step of the depth image stands for
    depth = self.depth(image)
    if depth is None:
      return photo
    scale = entry.get("depth_scale", 1.0)
    if not isinstance(scale, (int, float)) or not scale > 0:
      raise InputError(f"{self.camera_file}: {where}: depth_scale = {scale!r}: give a number > 0")
    unit = METRE * float(scale)
    # PNG is scaled where it is read; other forms may hold floats.
    if depth.suffix != ".png":
      values = pointmaps.read_depth_image(depth, f"BOP depth {depth}")
      if values.dtype.kind == "f":
        # floats count in the same steps
        return photo.with_pointmap(values * np.float32(unit))
    return photo.with_pointmap(depth, depth_unit=unit)

  def _entry(self, image: int) -> dict[str, Any]:
    """An image's entry of scene_camera.json. Raises InputError if there is none."""
    try:
      # JSON keys are text.
      return self.cameras[str(image)]
    except KeyError as error:
      raise InputError(f"{self.camera_file} has no entry {image}") from error


def pose(truth: dict, file: pathlib.Path) -> Pose:
  """The model-to-camera pose of a scene_gt.json entry in our camera frame, metres. Raises
  InputError.
  """
  try:
    rotation = np.array(truth["cam_R_m2c"], np.float64).reshape(3, 3)
    translation = np.array(truth["cam_t_m2c"], np.float64).reshape(3)
  except (KeyError, ValueError, TypeError) as error:
    raise InputError(
      f"{file}: cam_R_m2c has 9 numbers and cam_t_m2c 3, not so in {truth}"
    ) from error
  # Axes of the camera change sign, i.e. rows of the rotation; meshes stay in millimetres.
  return Pose(
    rotation=FLIP[:, None] * rotation,
    translation=FLIP * translation * METRE,
    scale=np.full(3, METRE),
  )


def read_targets(path: pathlib.Path) -> set[tuple[int, int, int]] | None:
  """(scene, image, object) of a targets file; None if there is no such file."""
  if not path.exists():
    return None
  targets = set()
  for place, entry in enumerate(read_json(path)):
    # BOP's names of what Scene.instances asks for.
    keys = ("scene_id", "im_id", "obj_id")
    numbers = [value_of(entry, key, int, path, f"entry {place}") for key in keys]
    targets.add(tuple(numbers))
  return targets


def value_of(entry: Any, key: str, kind: type | tuple, file: pathlib.Path, where: str) -> Any:
  """A value of an entry of a JSON file. Raises InputError if it is missing or of another kind."""
  if not isinstance(entry, dict) or key not in entry:
    raise InputError(f"{file}: {where} has no {key}")
  value = entry[key]
  if not isinstance(value, kind):
    raise InputError(f"{file}: {where}: {key} = {value!r} is of another kind than BOP prescribes")
  return value


def read_images(path: pathlib.Path, kind: type) -> dict[str, Any]:
  """A JSON file with an entry for each image, by its number. Raises InputError."""
  entries = read_json(path)
  if not isinstance(entries, dict):
    raise InputError(f"{path} holds no entries by number of the image")
  for number, entry in entries.items():
    is_number = number.isdecimal() and len(number) <= MAX_DIGITS
    if not is_number or not isinstance(entry, kind):
      raise InputError(
        f"{path}: entry {number!r} is not a number of an image with a {kind.__name__}"
      )
  return entries


def read_json(path: pathlib.Path) -> Any:
  """Parsed JSON. Raises InputError naming the file."""
  try:
    return texts.read_json(path)
  except (OSError, ValueError) as error:
    if not blame.is_of_the_file(error):
      raise
    raise InputError(f"{path} cannot be read as JSON ({error})") from error
