"""The page to look at: aggregate scores, every object, and renders of the best, the median and the worst."""

import base64
from collections.abc import Mapping, Sequence
import html as markup
import io
import pathlib

import numpy as np
from PIL import Image

from sam3d_jax import mesh, preview
from sam3d_jax.evaluation import shape, surface
from sam3d_jax.geometry.cameras import OBJECT_FROM_GLTF

STYLE = """body{font:14px system-ui,sans-serif;margin:24px;color:#222}table{border-collapse:collapse;margin:12px 0}
td,th{padding:3px 10px;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}
img{display:block;margin:4px 0}h2{margin-top:28px}.problem{color:#a33}"""
LABELS = {"f1": "F1@0.01 ↑", "viou": "voxel IoU ↑", "chamfer": "Chamfer ↓", "emd": "EMD ↓", "iou_3d": "3-D IoU ↑",
          "icp_rot_deg": "ICP-Rot ° ↓", "add_s": "ADD-S ↓", "add_s_01": "ADD-S@0.1 ↑"}


def number(value: float | None) -> str:
  return "–" if value is None else f"{value:.4f}"


def text_table(total: Mapping, names: Sequence[str]) -> str:
  """Mean and 95 % interval of each metric, for a terminal."""
  lines = []
  for name in names:
    interval = total[f"{name}_interval"]
    between = f"   [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else ""
    lines.append(f"{LABELS[name]:14} {number(total[name]):>9}{between}")
  return "\n".join(lines)


def html(pairs: pathlib.Path, rows: Mapping[str, Mapping], total: Mapping, names: Sequence[str],
         protocol: shape.ShapeProtocol) -> str:
  """A page that stands alone: pictures are inside. `rows`: object -> scores, `pairs` the folder they were read from."""
  order = sorted((name for name, row in rows.items() if row["scored"]), key=lambda n: (-rows[n]["f1"], rows[n]["chamfer"], n))
  shown = dict.fromkeys(order[i] for i in (0, len(order) // 2, len(order) - 1)) if order else {}
  parts = ["<!doctype html><meta charset='utf-8'><title>Evaluation</title>", f"<style>{STYLE}</style>", "<h1>Evaluation</h1>",
           f"<p>{total['objects']} objects, {total['scored']} scored, {total['with_pose']} with pose. Means with 95 % bootstrap "
           "intervals.</p>",
           aggregate_table(total, names)]
  for name, label in zip(shown, ("best", "median", "worst"), strict=False):
    parts.append(f"<h2>{label}: {markup.escape(name)}</h2>{picture(pairs / name, protocol)}")
  parts.append("<h2>All objects</h2>" + object_table(rows, names))
  return "\n".join(parts) + "\n"


def aggregate_table(total: Mapping, names: Sequence[str]) -> str:
  cells = []
  for name in names:
    interval = total[f"{name}_interval"]
    text = "–" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
    cells.append(f"<tr><td>{LABELS[name]}</td><td>{number(total[name])}</td><td>{text}</td></tr>")
  return f"<table><tr><th>metric</th><th>mean</th><th>interval</th></tr>{''.join(cells)}</table>"


def object_table(rows: Mapping[str, Mapping], names: Sequence[str]) -> str:
  head = "".join(f"<th>{LABELS[n]}</th>" for n in names)
  body = []
  for name in sorted(rows):
    scores = "".join(f"<td>{number(rows[name][n])}</td>" for n in names)
    body.append(f"<tr><td>{markup.escape(name)}</td>{scores}<td class='problem'>{markup.escape(rows[name]['problem'])}</td></tr>")
  return f"<table><tr><th>object</th>{head}<th></th></tr>{''.join(body)}</table>"


def picture(folder: pathlib.Path, protocol: shape.ShapeProtocol) -> str:
  """Truth and aligned prediction from two views, as an embedded image."""
  truth_file = surface.find_mesh(folder, "truth")
  truth = surface.load_surface(truth_file)
  truth = surface.Surface(surface.normalise(truth.vertices)[0], truth.faces)
  try:
    pred_file = surface.find_mesh(folder, "pred")
    pred = None if pred_file is None else aligned(surface.load_surface(pred_file), truth, protocol)
  except surface.SurfaceError:  # scored as missing, and the table says why
    pred = None
  upright = OBJECT_FROM_GLTF if truth_file.suffix.lower() in (".glb", ".gltf") else np.eye(3)
  views = [upright @ preview.orbit(azimuth, 25.0) for azimuth in (-60.0, 120.0)]
  shots = [preview.render(None if s is None else as_mesh(s), v, size=240) for s in (truth, pred) for v in views]
  sheet = preview.grid([shots], ("truth", "truth, from behind", "prediction, aligned", "prediction, from behind"), [""], size=240)
  return embed(sheet)


def aligned(pred: surface.Surface, truth: surface.Surface, protocol: shape.ShapeProtocol) -> surface.Surface:
  return shape.align_prediction(surface.Surface(surface.normalise(pred.vertices)[0], pred.faces), truth, protocol)


def as_mesh(s: surface.Surface) -> mesh.Mesh:
  """A normalised surface ([-1, 1]) in the renderer's unit cube."""
  return mesh.Mesh(s.vertices / 2, s.faces, mesh.GREY)


def embed(image: Image.Image) -> str:
  buffer = io.BytesIO()
  image.save(buffer, "PNG")
  return f"<img alt='renders' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
