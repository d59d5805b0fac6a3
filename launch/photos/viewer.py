"""The results of launch.sample in the browser: photo, point cloud and objects in place. Needs
requirements-viewer.txt.

The page is served by viser on this machine only, unless --viewer_host says otherwise, and to who
has its token only (launch/console/gate.py). Results may come from others: what they say is shown as
text, never as markup, and no file from outside of their folder is shown but photos of this run and
of the folders of --viewer_photos. The scene is that of scene.glb: the photo's camera at the origin,
x right, y up, looking along -z.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import os
import pathlib
import sys
from typing import Any
import webbrowser

import numpy as np

from launch.console.gate import HEADERS, Gate
from sam3d_jax.errors import InputError, JobFailed, Refused
from sam3d_jax.files import blame, images, meshes, names
from sam3d_jax.files.mesh_formats import gltf_document
from sam3d_jax.geometry import rotations
from sam3d_jax.inference.scene_files import read_layout
from sam3d_jax.render.colour import linear_to_srgb8

# (w, x, y, z), half a turn about y: (x, y, z) -> (-x, y, -z)
CAMERA_TO_SCENE = np.array([0.0, 0.0, 1.0, 0.0])
OPENCV_TO_SCENE = (0.0, 1.0, 0.0, 0.0)  # half a turn about x
PHOTO_SIDE = 1024  # pixels of the photo on the page


# What results of others may raise that are not as they should be.
FAULTS = (InputError, Refused, KeyError, TypeError, ValueError, AttributeError, IndexError)


@dataclasses.dataclass(frozen=True)
class ViewerConfig:
  """Where the page is served, and what it may show.

  host: address that the viewer listens on. photos: folders whose photos are shown beside those that
  lie in the results.
  """

  host: str = "127.0.0.1"
  port: int = 8080
  photos: tuple[str, ...] = ()


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
  gate = Gate(config.host)
  server = serve(find(out), gate=gate, port=config.port, photos=config.photos)

  # The address, with a warning where others can reach it.
  note = "" if gate.is_private else "; whoever has this address sees the photos"
  print(f"viewer: {gate.url()} (Ctrl-C stops it{note})", flush=True)
  if has_desktop():
    webbrowser.open(gate.url())
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


@contextlib.contextmanager
def asked_first(gate: Gate) -> Iterator[list]:
  """Servers of the library `websockets` that start within ask the gate about every request.

  Gives a list with an entry for each of them. viser has no place for such a question of its own.
  """
  from websockets.asyncio import server as library

  started: list = []
  plain = library.serve

  def serve(handler, *args, process_request=None, **options):
    started.append(handler)

    def ask(connection, request):
      refusal = gate.judge(request.path, request.headers)
      if refusal is not None:
        answer = connection.respond(refusal.status, refusal.text)
        for name, value in (HEADERS | dict(refusal.headers)).items():
          answer.headers[name] = value
        return answer
      answer = process_request(connection, request) if process_request is not None else None
      if answer is not None:
        for name, value in HEADERS.items():
          answer.headers[name] = value
      return answer

    return plain(handler, *args, process_request=ask, **options)

  library.serve = serve
  try:
    yield started
  finally:
    library.serve = plain


def serve(folders: dict[str, pathlib.Path], *, gate: Gate, port: int, photos: tuple[str, ...] = ()):
  """A running viser.ViserServer that shows the first photo; with several, a menu changes it.

  photos: as in ViewerConfig. Raises JobFailed if the server cannot be made to ask the gate.
  """
  import viser

  with asked_first(gate) as started:
    server = viser.ViserServer(host=gate.host, port=port, label="sam3d_jax", verbose=False)
  if not started:
    server.stop()
    raise JobFailed(
      "this version of viser serves without asking who may see the page: pip install -r "
      "requirements-viewer.txt"
    )
  gate.port = server.get_port()

  # y is up, as in scene.glb.
  server.scene.set_up_direction("+y")
  server.gui.configure_theme(
    control_layout="fixed",
    control_width="large",
    show_share_button=False,
  )

  # A menu only if there is a choice.
  shown: list = []
  choices = list(folders)
  if len(choices) > 1:
    menu = server.gui.add_dropdown("Photo", choices)
    menu.on_update(lambda _: show(server, folders[menu.value], shown, photos))
  show(server, folders[choices[0]], shown, photos)
  return server


def show(server, folder: pathlib.Path, shown: list, photos: tuple[str, ...] = ()) -> None:
  """Puts one photo's results on the page in place of what `shown` lists, and lists them there."""
  while shown:
    shown.pop().remove()
  try:
    show_results(server, folder, shown, photos)
  except FAULTS as error:
    add_text(server, "Cannot be shown", blame.said(error), shown)


def show_results(server, folder: pathlib.Path, shown: list, photos: tuple[str, ...]) -> None:
  """As `show`, on an empty page. Raises what results raise that are not as they should be."""
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
  add_text(server, "Results", folder.name, shown)
  said = f"frame {layout['frame']} · units {units} · camera {camera['source']}"
  add_text(server, "Camera", said, shown)

  # The photo, beside the scene and in it.
  picture = read_picture(layout["image"], (folder, *photos))
  if picture is None:
    add_text(server, "Photo", "not in the results: name its folder with --viewer_photos", shown)
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
  for number, (name, o) in enumerate(objects.items()):
    place = o["placement"]
    x, y, z = place["scale"]
    to_camera = np.array(place["rotation_glb"])
    # a name would be a path of its own in the page's tree
    handle = server.scene.add_glb(
      f"/objects/{number}",
      read_glb(folder, o["file"]),
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


def add_text(server, label: str, text: str, shown: list) -> None:
  """A line of text, in a field that shows characters as they are."""
  shown.append(server.gui.add_text(label, text, disabled=True))


def read_glb(folder: pathlib.Path, name: str) -> bytes:
  """An object's file, which lies in the folder of results and holds all that it needs.

  Raises InputError, Refused for one that names files or addresses for the browser to fetch.
  """
  path = names.below(folder, name)
  data = path.read_bytes()
  document = gltf_document.Document(path, data)
  if refers_elsewhere(document.json):
    raise InputError(f"{name} refers to other files, which are not shown")
  return data


def refers_elsewhere(tree: Any) -> bool:
  """Whether a glTF's JSON names an address that is no data within it."""
  waiting = [tree]
  while waiting:
    node = waiting.pop()
    if isinstance(node, Mapping):
      uri = node.get("uri")
      if uri is not None and not str(uri).startswith("data:"):
        return True
      waiting += node.values()
    elif isinstance(node, list):
      waiting += node
  return False


def read_picture(path: str | None, roots: tuple[str | os.PathLike, ...]) -> np.ndarray | None:
  """The photo, shrunk; None if it is no longer where it was, or lies in none of the folders."""
  if path is None:
    return None
  first, *others = roots
  try:
    # written relative to where the command was started
    found = names.below(first, str(pathlib.Path(path).absolute()), also=others)
  except names.Outside:
    return None
  if not found.is_file():
    return None
  image = images.open_image(found, "photo")
  image = images.to_eight_bit(image).convert("RGB")
  image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
  return np.asarray(image)
