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
    self.root = pathlib.Path(root)
    folder = self.root / split
    if not folder.is_dir():
      found = (
        sorted(p.parent.parent.name for p in self.root.glob("*/*/scene_gt.json"))
        if self.root.is_dir()
        else []
      )
      raise InputError(
        f"--bop {root} has no folder {split}"
        + (
          f"; give --split, one of {', '.join(dict.fromkeys(found))}"
          if found
          else " with scenes (<split>/000001/scene_gt.json)"
        )
      )
    self.models = next(
      (self.root / n for n in ("models_eval", "models") if (self.root / n).is_dir()), None
    )
    if self.models is None:
      raise InputError(
        f"--bop {root} has neither models_eval nor models, the folder of obj_000001.ply and so on"
      )
    targets = read_targets(self.root / "test_targets_bop19.json") if split == "test" else None
    self._scenes = {
      int(p.parent.name): Scene(p.parent) for p in sorted(folder.glob("*/scene_gt.json"))
    }
    self._instances = [
      (scene, *found)
      for scene, content in self._scenes.items()
      for found in content.instances(scene, targets)
    ]
    if not self._instances:
      raise InputError(
        f"--bop {folder} holds no instance of which {MIN_VISIBLE:.0%} or more is visible"
      )
    self.names = [
      f"{scene:06d}-{image:06d}-{place:06d}-obj_{content['obj_id']:06d}"
      for scene, image, place, content in self._instances
    ]
    self.identity = {
      "set": f"bop {self.root.name} {split}",
      "instances": len(self.names),
      "models": self.models.name,
    }
    self._meshes: dict[int, Mesh] = {}

  def __getitem__(self, index: int) -> Item:
    scene_id, image_id, place, truth = self._instances[index]
    scene = self._scenes[scene_id]
    photo = scene.photo(image_id)
    mask_file = scene.folder / "mask_visib" / f"{image_id:06d}_{place:06d}.png"
    return Item(
      name=self.names[index],
      image_HW3=photo.image_HW3,
      mask_HW=photo.read_mask(mask_file, "BOP mask"),
      truth=self._mesh(truth["obj_id"]),
      pose=pose(truth, scene.folder),
      pointmap_HW3=photo.pointmap_HW3,
      camera=photo.camera,
      subject=f"object {truth['obj_id']}",
      group=next(name for least, name in LEVELS if scene.visible(image_id, place) >= least),
    )

  def _mesh(self, number: int) -> Mesh:
    if number not in self._meshes:
      try:
        self._meshes[number] = surface.load_surface(self.models / f"obj_{number:06d}.ply").mesh
      except surface.SurfaceError as error:
        raise InputError(f"--bop: {error}") from error
    return self._meshes[number]


class Scene:
  """The JSON files of one scene folder."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.truth, self.cameras = (
      read_json(folder / "scene_gt.json"),
      read_json(folder / "scene_camera.json"),
    )
    info = folder / "scene_gt_info.json"
    self.info = read_json(info) if info.exists() else {}

  def instances(self, scene: int, targets: dict | None):
    """(image, place in the image's list, entry of scene_gt.json) of what is to be scored."""
    for image in sorted(self.truth, key=int):
      for place, entry in enumerate(self.truth[image]):
        wanted = targets is None or (scene, int(image), entry["obj_id"]) in targets
        if (
          wanted
          and self.visible(int(image), place) >= MIN_VISIBLE
          and self.is_large(int(image), place)
        ):
          yield int(image), place, entry

  def visible(self, image: int, place: int) -> float:
    """Visible share of an instance; 1 where the dataset does not say."""
    entries = self.info.get(str(image))
    return float(entries[place]["visib_fract"]) if entries else 1.0

  def is_large(self, image: int, place: int) -> bool:
    """Whether the visible part spans 3 x 3 pixels, the least that can be cropped; true where the
    dataset does not say.
    """
    entries = self.info.get(str(image))
    return not entries or min(entries[place].get("bbox_visib", [0, 0, 3, 3])[2:]) >= 3

  def picture(self, image: int) -> pathlib.Path:
    for folder in ("rgb", "gray"):
      for suffix in (".png", ".jpg", ".tif"):
        path = self.folder / folder / f"{image:06d}{suffix}"
        if path.exists():
          return path
    raise InputError(f"{self.folder}: image {image:06d} is in neither rgb nor gray")

  def photo(self, image: int) -> photos.Photo:
    """The picture with its camera and, where there is a depth image, its point map in metres."""
    entry = self._entry(image)
    k = np.array(entry["cam_K"], np.float64).reshape(3, 3)
    # BOP counts pixels from the centre of the first
    intrinsics = (k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5)
    photo = photos.read_photo(self.picture(image)).with_camera(intrinsics)
    depth = self.folder / "depth" / f"{image:06d}.png"
    if not depth.exists():
      return photo
    unit = METRE * float(entry.get("depth_scale", 1.0))
    return photo.with_pointmap(depth, depth_unit=unit)

  def _entry(self, image: int) -> dict[str, Any]:
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
  return Pose(FLIP[:, None] * rotation, FLIP * translation * METRE, np.full(3, METRE))


def read_targets(path: pathlib.Path) -> set[tuple[int, int, int]] | None:
  """(scene, image, object) of a targets file; None if there is no such file."""
  return (
    {(t["scene_id"], t["im_id"], t["obj_id"]) for t in read_json(path)} if path.exists() else None
  )


def read_json(path: pathlib.Path) -> Any:
  """Parsed JSON. Raises InputError naming the file."""
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise InputError(f"{path} cannot be read as JSON ({error})") from error
