"""The page to look at: scores, groups, every object, renders of the best, median and worst.

It stands alone: pictures are inside, and the few lines of script only sort the table.
"""

import base64
from collections.abc import Mapping, Sequence
import html as markup
import io
import json
import pathlib

import numpy as np
from PIL import Image

from sam3d_jax.errors import InputError
from sam3d_jax.evaluation import layout, shape, surface
from sam3d_jax.files import images
from sam3d_jax.geometry.cameras import OBJECT_FROM_GLTF
from sam3d_jax.geometry.pose import Pose, is_placed
from sam3d_jax.render import mesh, preview

LABELS = {
  "f1": "F1@0.01",
  "viou": "voxel IoU, aligned",
  "viou_fixed": "voxel IoU, one grid",
  "chamfer": "Chamfer",
  "emd": "EMD",
  "iou_3d": "3-D IoU",
  "icp_rot_deg": "ICP-Rot °",
  "add_s": "ADD-S",
  "add_s_01": "ADD-S@0.1",
  "voxel_iou": "voxel IoU, as sampled",
}
UP, DOWN = "↑", "↓"
BETTER = {
  "f1": UP,
  "viou": UP,
  "viou_fixed": UP,
  "chamfer": DOWN,
  "emd": DOWN,
  "iou_3d": UP,
  "icp_rot_deg": DOWN,
  "add_s": DOWN,
  "add_s_01": UP,
  "voxel_iou": UP,
}
TINT = np.array([74, 128, 196], np.uint8)  # of predictions
SIZE = 240  # pixels a side of a picture
STYLE = """
:root{color-scheme:light}
body{font:15px/1.45 system-ui,-apple-system,"Segoe UI",sans-serif;color:#1d2026;background:#fff;
max-width:1320px;margin:32px auto;padding:0 24px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 8px}p{margin:4px 0 12px}
.dim{color:#6a6f7a}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th{font-weight:600;color:#4a4f5a;vertical-align:bottom}
td,th{padding:5px 12px;border-bottom:1px solid #e6e8ec;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left;padding-left:0}td.text{text-align:left;white-space:normal}
small{color:#8a8f9a;font-size:12px;display:block}img{display:block;max-width:100%;margin:8px 0}
td.problem,th.problem{text-align:left}td.problem{color:#a33;white-space:normal;min-width:180px}
#objects th{cursor:pointer}#objects tr:hover td{background:#f5f7fa}
.wide{overflow-x:auto}
pre{background:#f5f7fa;padding:10px 14px;border-radius:6px;overflow-x:auto;font-size:12px}"""
SORT = """document.querySelectorAll('#objects th').forEach((th,i)=>th.onclick=()=>{
const b=th.closest('table').tBodies[0];
const v=r=>{const t=r.cells[i].textContent,n=parseFloat(t);return isNaN(n)?(t=='–'?-Infinity:t):n};
th.up=!th.up;
[...b.rows].sort((p,q)=>{const x=v(p),y=v(q);return (x>y?1:x<y?-1:0)*(th.up?1:-1)})
.forEach(r=>b.append(r))})"""


def number(value: float | None, name: str) -> str:
  """A score as shown; degrees need fewer digits."""
  if value is None:
    return "–"
  digits = 2 if name == "icp_rot_deg" else 4
  return f"{value:.{digits}f}"


def label(name: str) -> str:
  arrow = BETTER[name]
  return f"{LABELS[name]} {arrow}"


def text_table(total: Mapping, groups: Mapping[str, Mapping], names: Sequence[str]) -> str:
  """Mean and 95 % interval of each metric, then the means of the groups, for a terminal."""
  heads = "".join(f"{group:>10}" for group in groups)
  lines = [f"{'':24}{'mean':>9}  {'95 % interval':20}{heads}"]
  for name in names:
    mean = number(total[name], name)

    # An interval is missing where no object has the metric.
    interval = total[f"{name}_interval"]
    between = ""
    if interval:
      low, high = (number(end, name) for end in interval)
      between = f"[{low}, {high}]"

    # One column a group, means only.
    means = ""
    for group in groups.values():
      of_group = number(group[name], name)
      means += f"{of_group:>10}"
    lines.append(f"{label(name):24}{mean:>9}  {between:20}{means}")
  return "\n".join(lines)


def html(
  pairs: pathlib.Path,
  rows: Mapping[str, Mapping],
  total: Mapping,
  groups: Mapping[str, Mapping],
  names: Sequence[str],
  protocol: shape.ShapeProtocol,
  run: Mapping | None = None,
) -> str:
  """The page.

  rows: object -> scores. pairs: the folder they were read from. run: where the predictions come
  from.
  """
  title = "Evaluation"
  if run and "set" in run:
    title = f"Evaluation: {run['set']}"
  title = markup.escape(title)
  problems = ""
  if total["problems"]:
    problems = f", {total['problems']} with a problem"
  # Without poses, nothing of layout is shown.
  names = [n for n in names if total[n] is not None] or names

  # What was scored, and the means.
  parts = [
    "<!doctype html><html lang='en'><meta charset='utf-8'>"
    f"<title>{title}</title><style>{STYLE}</style>",
    f"<h1>{title}</h1>",
    f"<p class='dim'>{total['objects']} objects, {total['scored']} scored, "
    f"{total['with_pose']} with pose{problems}. {protocol.points:,} surface samples a shape. "
    "Means over objects with 95 % bootstrap intervals; "
    f"{UP} higher is better, {DOWN} lower is better.</p>",
    aggregate_table(total, groups, names),
  ]

  # Examples to look at, with their scores.
  for place, name in examples(rows).items():
    row = rows[name]
    scores = []
    for metric in names:
      value = row.get(metric)
      if value is not None:
        shown = number(value, metric)
        scores.append(f"{LABELS[metric]} {shown}")
    listed = " · ".join(scores)
    renders = picture(pairs / name, protocol)
    parts.append(
      f"<h2>{place.capitalize()} by F1: {markup.escape(name)}</h2>"
      f"<p class='dim'>{listed}</p>{renders}"
    )

  # Every object, and what made the predictions.
  objects = object_table(rows, names, pairs)
  parts.append(f"<h2>All objects</h2><div class='wide'>{objects}</div>")
  if run:
    said = markup.escape(json.dumps(run, indent=1))
    parts.append(f"<h2>Where the predictions come from</h2><pre>{said}</pre>")
  body = "\n".join(parts)
  return f"{body}<script>{SORT}</script></html>\n"


def examples(rows: Mapping[str, Mapping]) -> dict[str, str]:
  """The best, the median and the worst object by F1; of few objects none twice."""

  def rank(name: str) -> tuple:
    row = rows[name]
    f1 = row["f1"]
    chamfer = row["chamfer"]
    return -f1, chamfer, name

  # The best first; ties are broken by Chamfer, then by name.
  scored = [name for name, row in rows.items() if row["scored"]]
  if not scored:
    return {}
  order = sorted(scored, key=rank)
  middle = order[len(order) // 2]
  # A dictionary keeps the order and no name twice.
  chosen = dict.fromkeys([order[0], middle, order[-1]])
  places = ("best", "median", "worst")
  return dict(zip(places, chosen, strict=False))


def aggregate_table(total: Mapping, groups: Mapping[str, Mapping], names: Sequence[str]) -> str:
  """Means and intervals, a column for all objects and for each group."""
  columns = {"all": total, **groups}

  # The heads say of how many objects a column is.
  head = ""
  for group, scores in columns.items():
    count = scores.get("scored", scores["objects"])
    named = markup.escape(group)
    head += f"<th>{named}<small>{count} objects</small></th>"

  # A line a metric; a cell has the mean and below it the interval.
  lines = ""
  for name in names:
    cells = ""
    for scores in columns.values():
      interval = scores[f"{name}_interval"]
      between = ""
      if interval is not None:
        low, high = (number(end, name) for end in interval)
        between = f"<small>{low} … {high}</small>"
      mean = number(scores[name], name)
      cells += f"<td>{mean}{between}</td>"
    lines += f"<tr><td>{label(name)}</td>{cells}</tr>"
  return f"<table><thead><tr><th>metric</th>{head}</tr></thead><tbody>{lines}</tbody></table>"


def object_table(rows: Mapping[str, Mapping], names: Sequence[str], pairs: pathlib.Path) -> str:
  """One line an object; no scores where the truth is unusable.

  Files in messages are named from the object's folder on.
  """
  # The column of problems is there if anything has one.
  problems = any(row["problem"] for row in rows.values())
  head = "".join(f"<th>{label(name)}</th>" for name in names)
  if problems:
    head += "<th class='problem'>problem</th>"

  lines = ""
  for name in sorted(rows):
    row = rows[name]
    cells = f"<td>{markup.escape(name)}</td>"
    for metric in names:
      value = row.get(metric) if row["scored"] else None
      cells += f"<td>{number(value, metric)}</td>"

    if problems:
      folder = f"{pairs / name}/"
      text = row["problem"].replace(folder, "")
      if not row["scored"]:
        text = "not scored: " + text
      cells += f"<td class='problem'>{markup.escape(text)}</td>"
    lines += f"<tr>{cells}</tr>"
  return (
    f"<table id='objects'><thead><tr><th>object</th>{head}</tr></thead>"
    f"<tbody>{lines}</tbody></table>"
  )


def picture(folder: pathlib.Path, protocol: shape.ShapeProtocol) -> str:
  """Photo, truth and aligned prediction from two views, and both as placed: an embedded image."""
  # The two shapes; a prediction that cannot be read is scored as missing, and the table says why.
  truth_file = surface.find_mesh(folder, "truth")
  truth = surface.load_surface(truth_file).mesh
  try:
    pred_file = surface.find_mesh(folder, "pred")
    pred = None if pred_file is None else surface.load_surface(pred_file).mesh
  except surface.SurfaceError:
    pred = None

  # As the shape metrics compare them.
  unit_truth = surface.normalised(truth)
  moved = None
  if pred is not None:
    unit_pred = surface.normalised(pred)
    moved = shape.align_prediction(unit_pred, unit_truth, protocol)

  # Two views: the photo's and another one, or two upright ones where there is no pose.
  truth_pose = read_pose(folder / "truth_pose.json")
  pred_pose = read_pose(folder / "pred_pose.json")
  if truth_pose is not None:
    rotation = truth_pose.rotation
    views = {
      "": rotation,
      ", turned": preview.turned(rotation, 120.0),
    }
  else:
    is_gltf = truth_file.suffix.lower() in (".glb", ".gltf")
    upright = OBJECT_FROM_GLTF if is_gltf else np.eye(3)
    views = {
      "": preview.orbit(-60.0, 25.0) @ upright.T,
      ", behind": preview.orbit(120.0, 25.0) @ upright.T,
    }

  # Photo, then both shapes in every view.
  shots = photos(folder)
  sides = {"truth": in_unit_cube(unit_truth, mesh.GREY)}
  if moved is None:
    sides["nothing predicted"] = None
  else:
    sides["aligned prediction"] = in_unit_cube(moved, TINT)
  for name, side in sides.items():
    for view, view_33 in views.items():
      shots[name + view] = preview.render(side, view_33, size=SIZE)

  # Both in the scene, where both have a place.
  posed = pred is not None and truth_pose is not None and pred_pose is not None
  if posed and is_placed(pred_pose) and is_placed(truth_pose):
    placed_truth = layout.place(truth, truth_pose)
    placed_pred = layout.place(pred, pred_pose)
    shots["both as placed"] = together(placed_truth, placed_pred)

  # One row, a column a picture, its name above it.
  row = list(shots.values())
  sheet = preview.grid(
    [row],
    list(shots),
    [""],
    size=SIZE,
  )
  return embed(sheet)


def photos(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The photo, and it with all but the object dimmed; empty without photo and mask of one size."""
  image_file = folder / "image.png"
  mask_file = folder / "mask.png"
  if not (image_file.is_file() and mask_file.is_file()):
    return {}
  try:
    image, _ = images.read_image(image_file)
    grey = images.open_image(mask_file, "mask")
    mask = np.asarray(grey.convert("L"))
  # a picture that cannot be shown costs no scores
  except InputError:
    return {}
  if mask.shape != image.shape[:2]:
    return {}
  # All but the object becomes pale.
  is_object = mask[..., None] > 0
  dimmed = image // 3 + 150
  return {"photo": image, "object": np.where(is_object, image, dimmed)}


def read_pose(path: pathlib.Path) -> Pose | None:
  """The pose, None if there is none that can be used (the scores say so)."""
  try:
    return layout.load_pose(path)
  except layout.PoseError:
    return None


def together(truth: mesh.Mesh, pred: mesh.Mesh) -> np.ndarray:
  """Both posed shapes as the camera sees them from straight ahead, the truth filling the middle."""
  # The truth's box decides what is in the middle and how large.
  _, centre, half = surface.normalise(truth.vertices)
  coloured = []
  for side, colour in ((truth, mesh.GREY), (pred, TINT)):
    centred = (side.vertices - centre) / half
    shape = mesh.Mesh(centred, side.faces)
    coloured.append(in_unit_cube(shape, colour))
  both = mesh.join(coloured)
  # The camera's own axes: x left, y up, z into the scene.
  straight_ahead = np.eye(3)
  return preview.render(
    both,
    straight_ahead,
    size=SIZE,
    extent=1.8,
  )


def in_unit_cube(shape: mesh.Mesh, colour: np.ndarray) -> mesh.Mesh:
  """A normalised shape ([-1, 1]) in the renderer's unit cube, in one colour."""
  # The renderer's cube is [-0.5, 0.5]^3.
  vertices = shape.vertices / 2
  halved = mesh.Mesh(vertices, shape.faces)
  return halved.painted(colour)


def embed(image: Image.Image) -> str:
  # Inside the page, so that it can be sent as one file.
  buffer = io.BytesIO()
  image.save(buffer, "PNG")
  encoded = base64.b64encode(buffer.getvalue())
  text = encoded.decode()
  return f"<img alt='renders' src='data:image/png;base64,{text}'>"
