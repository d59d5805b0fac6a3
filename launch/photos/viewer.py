"""The results of launch.sample in the browser: photo, point cloud and objects in place. Needs
requirements-viewer.txt.

The page is served by viser on this machine only, unless --viewer_host says otherwise. Its scene is
that of scene.glb: the photo's camera at the origin, x right, y up, looking along -z.
"""

import dataclasses
import os
import pathlib
import sys
import webbrowser

import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.files import images, meshes
from sam3d_jax.geometry import rotations
from sam3d_jax.inference.scene_files import read_layout
from sam3d_jax.render.colour import linear_to_srgb8

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# (w, x, y, z), half a turn about y: (x, y, z) -> (-x, y, -z)
CAMERA_TO_SCENE = np.array([0.0, 0.0, 1.0, 0.0])
OPENCV_TO_SCENE = (0.0, 1.0, 0.0, 0.0)  # half a turn about x
PHOTO_SIDE = 1024  # pixels of the photo on the page


@dataclasses.dataclass(frozen=True)
class ViewerConfig:
  """Where the page is served. host: address that the viewer listens on."""

  host: str = "127.0.0.1"
  port: int = 8080


def check(config: ViewerConfig) -> None:
  """Raises InputError if the viewer cannot be started."""
  try:
    import viser  # noqa: F401
  except ImportError as error:
    raise InputError(
      f"--viewer needs viser ({error}): pip install -r requirements-viewer.txt"
    ) from error
  if not 0 < config.port < 65536:
    raise InputError(f"--viewer_port {config.port} is not a port: give 1 to 65535")


def run(config: ViewerConfig, out: pathlib.Path) -> None:
  """Serves the results in a folder until interrupted."""
  check(config)
  server = serve(find(out), host=config.host, port=config.port)

  # The address, with a warning where others can reach it.
  private = config.host in LOOPBACK
  host = "localhost" if private else config.host
  url = f"http://{host}:{server.get_port()}"
  note = "" if private else "; whoever reaches this address sees the photos"
  print(f"viewer: {url} (Ctrl-C stops it{note})", flush=True)
  if has_desktop():
    webbrowser.open(url)
  try:
    server.sleep_forever()
  except KeyboardInterrupt:
    server.stop()


def has_desktop() -> bool:
  """Whether a browser can be opened here."""
  if sys.platform in ("darwin", "win32"):
    return True
  return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def find(out: pathlib.Path) -> dict[str, pathlib.Path]:
  """Name -> folder of every photo with results in a folder. Raises InputError if there is none."""
  candidates = [out]
  for path in sorted(out.glob("*")):
    if path.is_dir():
      candidates.append(path)
  folders = [folder for folder in candidates if read_layout(folder) is not None]
  if not folders:
    raise InputError(f"--viewer: {out} holds no results of launch.sample (layout.json)")
  return {folder.name: folder for folder in folders}


def serve(folders: dict[str, pathlib.Path], *, host: str, port: int):
  """A running viser.ViserServer that shows the first photo; with several, a menu changes it."""
  import viser

  # y is up, as in scene.glb.
  server = viser.ViserServer(host=host, port=port, label="sam3d_jax", verbose=False)
  server.scene.set_up_direction("+y")
  server.gui.configure_theme(
    control_layout="fixed",
    control_width="large",
    show_share_button=False,
  )

  # A menu only if there is a choice.
  shown: list = []
  names = list(folders)
  if len(names) > 1:
    menu = server.gui.add_dropdown("Photo", names)
    menu.on_update(lambda _: show(server, folders[menu.value], shown))
  show(server, folders[names[0]], shown)
  return server


def show(server, folder: pathlib.Path, shown: list) -> None:
  """Puts one photo's results on the page in place of what `shown` lists, and lists them there."""
  while shown:
    shown.pop().remove()
  layout = read_layout(folder)
  objects = {name: o for name, o in layout["objects"].items() if o["file"] is not None}

  # How far away things are decides how large the camera and the points are drawn.
  reach = 1.0
  if objects:
    distances = [np.linalg.norm(o["placement"]["translation"]) for o in objects.values()]
    reach = float(np.median(distances))

  # What the page says.
  camera = layout["camera"]
  units = layout["scene"]["units"] or "arbitrary"
  heading = server.gui.add_markdown(
    f"**{folder.name}** · frame {layout['frame']} · units {units} · camera {camera['source']}"
  )
  shown.append(heading)

  # The photo, beside the scene and in it.
  picture = read_picture(layout["image"])
  if picture is not None:
    shown.append(server.gui.add_image(picture, label="Photo"))
  fov = 2 * np.arctan(layout["height"] / 2 / camera["fy"])
  frustum = server.scene.add_camera_frustum(
    "/photo",
    float(fov),
    layout["width"] / layout["height"],
    scale=0.25 * reach,
    image=picture,
    wxyz=OPENCV_TO_SCENE,
  )
  shown.append(frustum)
  toggle(server, "photo's camera", frustum, shown)

  # Its points, and the objects, whose GLB is y up: y and z change places in the scale.
  points = folder / "points.ply"
  if points.exists():
    add_points(server, points, reach, shown)
  for name, o in objects.items():
    place = o["placement"]
    x, y, z = place["scale"]
    to_camera = np.array(place["rotation_glb"])
    handle = server.scene.add_glb(
      f"/objects/{name}",
      (folder / o["file"]).read_bytes(),
      scale=(x, z, y),
      wxyz=rotations.quaternion_multiply(CAMERA_TO_SCENE, to_camera),
      position=np.array(place["translation"]) * (-1.0, 1.0, -1.0),
    )
    shown.append(handle)
    toggle(server, f"{name} (mask IoU {o['mask_iou']:.2f})", handle, shown)

  # Everyone looks from behind the photo's camera.
  position = (0.0, 0.15 * reach, 0.5 * reach)
  look_at = (0.0, 0.0, -reach)
  views = [server.initial_camera]
  views += [client.camera for client in server.get_clients().values()]
  for view in views:
    view.position = position
    view.look_at = look_at


def add_points(server, path: pathlib.Path, reach: float, shown: list) -> None:
  """The point map's points, with a switch."""
  # Colours are stored linear; the page wants them as a screen does.
  cloud = meshes.read(path).mesh
  handle = server.scene.add_point_cloud(
    "/points",
    cloud.vertices.astype(np.float32),
    linear_to_srgb8(cloud.colours),
    point_size=0.003 * reach,
    precision="float32",
  )
  shown.append(handle)
  toggle(server, "point map", handle, shown)


def toggle(server, label: str, handle, shown: list) -> None:
  """A checkbox that shows and hides something."""
  box = server.gui.add_checkbox(label, True)
  box.on_update(lambda _: setattr(handle, "visible", box.value))
  shown.append(box)


def read_picture(path: str | None) -> np.ndarray | None:
  """The photo, shrunk; None if it is no longer where it was."""
  if path is None or not pathlib.Path(path).exists():
    return None
  image = images.open_image(path, "photo")
  image = images.to_eight_bit(image).convert("RGB")
  image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
  return np.asarray(image)
