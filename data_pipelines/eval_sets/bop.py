"""BOP-format datasets (bop.felk.cvut.cz: LM-O, YCB-V, HOPE, HB, ...) as an evaluation set.

    ROOT/models_eval or models/   obj_000001.ply (millimetres), models_info.json
    ROOT/<split>/000002/          rgb (or gray)/000003.png|jpg   depth/000003.png
                                  mask_visib/000003_000001.png
                                  scene_gt.json   scene_camera.json   scene_gt_info.json (optional)
    ROOT/test_targets_bop19.json  optional: of the split "test", only the images and objects
                                  that it lists

One item is one object instance in one image. As the BOP challenge does, instances of which less
than 10 % is visible are left out, and those that span fewer than 3 x 3 pixels. Conversions: the
OpenCV camera frame (x right, y down) becomes ours, the centre of the first pixel moves from (0, 0)
to (0.5, 0.5), millimetres of depth and pose become metres. Meshes stay in millimetres in their own
frame; the pose's scale is 0.001.
"""

from collections.abc import Sequence
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from data_pipelines.eval_sets.item import Item
from sam3d_jax.errors import InputError
from sam3d_jax.evaluation import surface
from sam3d_jax.files import photos
from sam3d_jax.geometry.cameras import AXES
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.render.mesh import Mesh

MIN_VISIBLE = 0.1  # share of an instance's pixels
# groups, by the least visible share
LEVELS = ((0.9, "visible 90-100 %"), (0.5, "visible 50-90 %"), (0.0, "visible 10-50 %"))
FLIP = np.array(AXES["opencv"])  # OpenCV's camera axes seen from ours
METRE = 0.001  # of a millimetre


class BopSet:
  """The instances of a split. Images and meshes are read when an item is asked for."""

  def __init__(self, root: str | pathlib.Path, split: str = "test"):
    """Lists the instances of a split.

    Raises InputError where the split or the models are not there, or no instance is to be scored.
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
    for path in sorted(folder.glob("*/scene_gt.json")):
      number = int(path.parent.name)
      scene = Scene(path.parent)
      self._scenes[number] = scene
      for image, place, truth in scene.instances(number, targets):
        self._instances.append((number, image, place, truth))
    if not self._instances:
      raise InputError(
        f"--bop {folder} holds no instance of which {MIN_VISIBLE:.0%} or more is visible"
      )

    self.names = []
    for number, image, place, truth in self._instances:
      self.names.append(f"{number:06d}-{image:06d}-{place:06d}-obj_{truth['obj_id']:06d}")
    self.identity = {
      "set": f"bop {self.root.name} {split}",
      "instances": len(self.names),
      "models": self.models.name,
    }
    self._meshes: dict[int, Mesh] = {}

  def __getitem__(self, index: int) -> Item:
    number, image, place, truth = self._instances[index]
    scene = self._scenes[number]
    photo = scene.photo(image)
    mask_file = scene.folder / "mask_visib" / f"{image:06d}_{place:06d}.png"
    return Item(
      name=self.names[index],
      image_HW3=photo.image_HW3,
      mask_HW=photo.read_mask(mask_file, "BOP mask"),
      truth=self._mesh(truth["obj_id"]),
      pose=pose(truth, scene.folder),
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
        self._meshes[number] = surface.load_surface(path).mesh
      except surface.SurfaceError as error:
        raise InputError(f"--bop: {error}") from error
    return self._meshes[number]


def _no_split(folder: pathlib.Path, root: str | pathlib.Path, split: str) -> str:
  """What to say where the folder of a split is missing; `root` is as it was given."""
  found = []
  if folder.is_dir():
    found = sorted(path.parent.parent.name for path in folder.glob("*/*/scene_gt.json"))
  said = f"--bop {root} has no folder {split}"
  if found:
    splits = ", ".join(dict.fromkeys(found))
    return f"{said}; give --split, one of {splits}"
  return f"{said} with scenes (<split>/000001/scene_gt.json)"


def _first_folder(root: pathlib.Path, names: Sequence[str]) -> pathlib.Path | None:
  for name in names:
    if (root / name).is_dir():
      return root / name
  return None


def level_of(visible: float) -> str:
  """The group of an instance by its visible share, 0..1."""
  for least, name in LEVELS:
    if visible >= least:
      return name
  raise ValueError(f"a visible share lies in 0..1, got {visible}")


class Scene:
  """The JSON files of one scene folder."""

  def __init__(self, folder: pathlib.Path):
    """Reads the folder's JSON. Raises InputError naming the file that cannot be read."""
    self.folder = folder
    self.truth = read_json(folder / "scene_gt.json")
    self.cameras = read_json(folder / "scene_camera.json")
    info = folder / "scene_gt_info.json"
    self.info = read_json(info) if info.exists() else {}

  def instances(self, scene: int, targets: set | None):
    """(image, place in the image's list, entry of scene_gt.json) of what is to be scored."""
    for name in sorted(self.truth, key=int):
      image = int(name)
      for place, entry in enumerate(self.truth[name]):
        if targets is not None and (scene, image, entry["obj_id"]) not in targets:
          continue
        if self.visible(image, place) >= MIN_VISIBLE and self.is_large(image, place):
          yield image, place, entry

  def visible(self, image: int, place: int) -> float:
    """Visible share of an instance; 1 where the dataset does not say."""
    entries = self.info.get(str(image))
    if not entries:
      return 1.0
    return float(entries[place]["visib_fract"])

  def is_large(self, image: int, place: int) -> bool:
    """Whether the visible part spans 3 x 3 pixels, the least that can be cropped; true where the
    dataset does not say.
    """
    entries = self.info.get(str(image))
    if not entries:
      return True
    box = entries[place].get("bbox_visib", [0, 0, 3, 3])
    return min(box[2:]) >= 3

  def picture(self, image: int) -> pathlib.Path:
    """The file of an image. Raises InputError if there is none."""
    for folder, suffix in itertools.product(("rgb", "gray"), (".png", ".jpg", ".tif")):
      path = self.folder / folder / f"{image:06d}{suffix}"
      if path.exists():
        return path
    raise InputError(f"{self.folder}: image {image:06d} is in neither rgb nor gray")

  def photo(self, image: int) -> photos.Photo:
    """The picture with its camera and, where there is a depth image, its point map in metres."""
    entry = self._entry(image)
    k = np.array(entry["cam_K"], np.float64).reshape(3, 3)
    fx, fy = k[0, 0], k[1, 1]
    cx, cy = k[0, 2], k[1, 2]
    # BOP counts pixels from the centre of the first
    intrinsics = (fx, fy, cx + 0.5, cy + 0.5)
    photo = photos.read_photo(self.picture(image))
    photo = photo.with_camera(intrinsics)

    # depth_scale is the millimetres that a step of the depth image stands for
    depth = self.folder / "depth" / f"{image:06d}.png"
    if not depth.exists():
      return photo
    unit = METRE * float(entry.get("depth_scale", 1.0))
    return photo.with_pointmap(depth, depth_unit=unit)

  def _entry(self, image: int) -> dict[str, Any]:
    """An image's entry of scene_camera.json. Raises InputError if there is none."""
    try:
      return self.cameras[str(image)]
    except KeyError as error:
      raise InputError(f"{self.folder / 'scene_camera.json'} has no entry {image}") from error


def pose(truth: dict, folder: pathlib.Path) -> Pose:
  """The model-to-camera pose of a scene_gt.json entry in our camera frame, metres. Raises
  InputError.
  """
  try:
    rotation = np.array(truth["cam_R_m2c"], np.float64).reshape(3, 3)
    translation = np.array(truth["cam_t_m2c"], np.float64).reshape(3)
  except (KeyError, ValueError) as error:
    raise InputError(
      f"{folder / 'scene_gt.json'}: cam_R_m2c has 9 numbers and cam_t_m2c 3, not so in {truth}"
    ) from error
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
  for entry in read_json(path):
    targets.add((entry["scene_id"], entry["im_id"], entry["obj_id"]))
  return targets


def read_json(path: pathlib.Path) -> Any:
  """Parsed JSON. Raises InputError naming the file."""
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise InputError(f"{path} cannot be read as JSON ({error})") from error
