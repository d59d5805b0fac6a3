"""Image scores of rendered views (launch.evaluate --views) and ratings from people's choices
(launch.evaluate --votes).
"""

import csv
import pathlib

import numpy as np

from launch.console.progress import Progress
from sam3d_jax.errors import InputError
from sam3d_jax.evaluation import aggregate, preference, views
from sam3d_jax.files import atomic, images

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PSNR = 100.0  # dB; of equal pictures, whose PSNR is infinite
WORST = {"psnr": 0.0, "ssim": 0.0, "lpips": 1.0}


def run_views(root: pathlib.Path, lpips_weights: str | None, out: pathlib.Path) -> None:
  """Writes metrics.json and metrics.csv: per object the mean over its views.

  lpips_weights: file with the weights of LPIPS; None: without that score.
  """
  lpips = None
  if lpips_weights is not None:
    from sam3d_jax.evaluation import perceptual  # needs JAX, which the other scores do not

    lpips = perceptual.load_lpips(lpips_weights)
  names = ("psnr", "ssim", "lpips") if lpips else ("psnr", "ssim")
  folders = []
  if root.is_dir():
    folders = [f for f in sorted(root.iterdir()) if f.is_dir() and pictures(f, "truth")]
  if not folders:
    raise InputError(f"--views {root} has no folder with truth_<view>.png and pred_<view>.png")
  rows = {}
  with Progress(len(folders), "scoring views", "objects") as bar:
    for folder in folders:
      rows[folder.name] = score_views(folder, names, lpips)
      bar.update()
  total = aggregate.summarise(rows, names) | {
    "objects": len(rows),
    "views": sum(row["views"] for row in rows.values()),
    "problems": sum(bool(row["problem"]) for row in rows.values()),
  }
  atomic.write_json(out / "metrics.json", {"aggregate": total, "objects": rows})
  aggregate.write_csv(out / "metrics.csv", rows, (*names, "views", "problem"))
  for name in names:
    low, high = total[f"{name}_interval"]
    print(f"{name:6}{total[name]:9.4f}   [{low:.4f}, {high:.4f}]")
  print(
    f"{len(rows)} objects, {total['views']} views, {total['problems']} with a problem; "
    f"{out / 'metrics.json'}, metrics.csv"
  )


def pictures(folder: pathlib.Path, stem: str) -> dict[str, pathlib.Path]:
  """View name -> file of `<stem>_<view>.<suffix>` (or `<stem>.<suffix>`, the view "")."""
  found = [
    p
    for p in sorted(folder.iterdir())
    if p.suffix.lower() in SUFFIXES and (p.stem == stem or p.stem.startswith(f"{stem}_"))
  ]
  return {p.stem.removeprefix(stem).removeprefix("_"): p for p in found}


def score_views(folder: pathlib.Path, names: tuple[str, ...], lpips) -> dict:
  """Mean scores over the true views of one object. A view that is missing or cannot be compared
  scores WORST, and `problem` says why.
  """
  truth, pred = pictures(folder, "truth"), pictures(folder, "pred")
  scores, problems = [], []
  for view, path in truth.items():
    try:
      if view not in pred:
        raise InputError(f"{folder}: pred_{view} is missing")
      scores.append(
        score_view(
          *(images.read_image(p, "view")[0] / np.float32(255) for p in (pred[view], path)), lpips
        )
      )
    except ValueError as error:  # of another size, too small, unreadable
      scores.append(WORST)
      problems.append(str(error))
  return {name: float(np.mean([s[name] for s in scores])) for name in names} | {
    "views": len(scores),
    "problem": "; ".join(problems),
  }


def score_view(pred_HW3: np.ndarray, truth_HW3: np.ndarray, lpips) -> dict[str, float]:
  """Scores of one picture. Raises ValueError if the two cannot be compared."""
  if pred_HW3.shape != truth_HW3.shape:
    raise ValueError(
      f"the view is {pred_HW3.shape[1]} x {pred_HW3.shape[0]}, its truth {truth_HW3.shape[1]} x "
      f"{truth_HW3.shape[0]}"
    )
  out = {
    "psnr": min(views.psnr(pred_HW3, truth_HW3), MAX_PSNR),
    "ssim": views.ssim(pred_HW3, truth_HW3),
  }
  return out | ({"lpips": lpips(pred_HW3, truth_HW3)} if lpips else {})


def run_votes(file: pathlib.Path, out: pathlib.Path) -> None:
  """Writes votes.json: Elo ratings and win rates with 95 % intervals."""
  votes = read_votes(file)
  ratings, intervals = preference.elo(votes), preference.elo_intervals(votes)
  names = sorted(ratings, key=lambda name: -ratings[name])
  rates = {
    a: {b: preference.win_rate(votes, a, b)._asdict() for b in names if b != a} for a in names
  }
  met = {a: {b: rate for b, rate in others.items() if rate["votes"]} for a, others in rates.items()}
  elo = {name: {"elo": ratings[name], "interval": list(intervals[name])} for name in names}
  atomic.write_json(out / "votes.json", {"votes": len(votes), "elo": elo, "win_rate": met})
  for name in names:
    low, high = intervals[name]
    print(f"{name:24} Elo {ratings[name]:7.1f}   [{low:.1f}, {high:.1f}]")
    for other, rate in met[name].items():
      print(
        f"{'':24}   {rate['rate']:6.1%} of {rate['votes']} against {other}   [{rate['low']:.1%}, "
        f"{rate['high']:.1%}]"
      )
  print(out / "votes.json")


def read_votes(path: pathlib.Path) -> list[preference.Vote]:
  """Rows left,right,outcome of a CSV file with these headings.

  Raises InputError naming the line.
  """
  try:
    with path.open(newline="") as file:
      rows = list(csv.DictReader(file))
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"--votes {path} cannot be read ({error})") from error
  votes = []
  for line, row in enumerate(rows, 2):
    left, right, outcome = (str(row.get(k) or "").strip() for k in ("left", "right", "outcome"))
    if not left or not right or left == right or outcome not in preference.OUTCOMES:
      raise InputError(
        f"--votes {path} line {line}: {row} needs two different models in the columns left and "
        "right and "
        f"{', '.join(preference.OUTCOMES)} in the column outcome"
      )
    votes.append(preference.Vote(left, right, outcome))
  if not votes:
    raise InputError(f"--votes {path} holds no vote below its headings left,right,outcome")
  return votes
