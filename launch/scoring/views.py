"""Image scores of rendered views (launch.evaluate --views) and ratings from people's choices
(launch.evaluate --votes).
"""

import pathlib

import numpy as np

from launch.console.progress import Progress
from sam3d_jax.errors import InputError
from sam3d_jax.evaluation import aggregate, preference, views
from sam3d_jax.files import atomic, blame, images, texts

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PSNR = 100.0  # dB; of equal pictures, whose PSNR is infinite
WORST = {"psnr": 0.0, "ssim": 0.0, "lpips": 1.0}


def run_views(root: pathlib.Path, lpips_weights: str | None, out: pathlib.Path) -> None:
  """Writes metrics.json and metrics.csv: per object the mean over its views.

  lpips_weights: file with the weights of LPIPS; None: without that score.
  """
  names = ("psnr", "ssim")
  lpips = None
  if lpips_weights is not None:
    # Needs JAX, which the other scores do not.
    from sam3d_jax.evaluation import perceptual

    lpips = perceptual.load_lpips(lpips_weights)
    names = ("psnr", "ssim", "lpips")

  folders = find_views(root)
  rows = {}
  with Progress(len(folders), "scoring views", "objects") as bar:
    for folder in folders:
      rows[folder.name] = score_views(folder, names, lpips)
      bar.update()

  # The means, as files and in the terminal.
  total = aggregate.summarise(rows, names)
  total["objects"] = len(rows)
  total["views"] = sum(row["views"] for row in rows.values())
  total["problems"] = sum(bool(row["problem"]) for row in rows.values())
  atomic.write_json(out / "metrics.json", {"aggregate": total, "objects": rows})
  aggregate.write_csv(out / "metrics.csv", rows, (*names, "views", "problem"))
  for name in names:
    low, high = total[f"{name}_interval"]
    print(f"{name:6}{total[name]:9.4f}   [{low:.4f}, {high:.4f}]")
  print(
    f"{len(rows)} objects, {total['views']} views, {total['problems']} with a problem; "
    f"{out / 'metrics.json'}, metrics.csv"
  )


def find_views(root: pathlib.Path) -> list[pathlib.Path]:
  """The objects: folders that hold a true view, by name. Raises InputError if there is none."""
  folders = []
  if root.is_dir():
    for folder in sorted(root.iterdir()):
      if folder.is_dir() and pictures(folder, "truth"):
        folders.append(folder)
  if not folders:
    raise InputError(f"--views {root} has no folder with truth_<view>.png and pred_<view>.png")
  return folders


def pictures(folder: pathlib.Path, stem: str) -> dict[str, pathlib.Path]:
  """View name -> file of `<stem>_<view>.<suffix>` (or `<stem>.<suffix>`, the view "")."""
  found = {}
  for path in sorted(folder.iterdir()):
    is_picture = path.suffix.lower() in SUFFIXES
    is_stem = path.stem == stem or path.stem.startswith(f"{stem}_")
    if is_picture and is_stem:
      view = path.stem.removeprefix(stem).removeprefix("_")
      found[view] = path
  return found


def score_views(folder: pathlib.Path, names: tuple[str, ...], lpips) -> dict:
  """Mean scores over the true views of one object. A view that is missing or cannot be compared
  scores WORST, and `problem` says why.
  """
  truth = pictures(folder, "truth")
  pred = pictures(folder, "pred")
  scores = []
  problems = []
  for view, path in truth.items():
    try:
      if view not in pred:
        raise InputError(f"{folder}: pred_{view} is missing")
      pred_HW3 = read_view(pred[view])
      truth_HW3 = read_view(path)
      scores.append(score_view(pred_HW3, truth_HW3, lpips))
    except ValueError as error:
      # missing, unreadable, too small or of another size
      scores.append(WORST)
      problems.append(str(error))
    except (MemoryError, RecursionError) as error:
      scores.append(WORST)
      problems.append(f"{folder}: view {view} cannot be scored ({blame.said(error)})")

  row = {}
  for name in names:
    values = [score[name] for score in scores]
    row[name] = float(np.mean(values))
  row["views"] = len(scores)
  row["problem"] = "; ".join(problems)
  return row


def read_view(path: pathlib.Path) -> np.ndarray:
  """(H, W, 3) float32 in 0..1. Raises InputError."""
  image, _ = images.read_image(path, "view")
  return image / np.float32(255)


def score_view(pred_HW3: np.ndarray, truth_HW3: np.ndarray, lpips) -> dict[str, float]:
  """Scores of one picture. Raises ValueError if the two cannot be compared."""
  height, width = pred_HW3.shape[:2]
  true_height, true_width = truth_HW3.shape[:2]
  if pred_HW3.shape != truth_HW3.shape:
    raise ValueError(f"the view is {width} x {height}, its truth {true_width} x {true_height}")

  # LPIPS where its weights were given.
  out = {
    "psnr": min(views.psnr(pred_HW3, truth_HW3), MAX_PSNR),
    "ssim": views.ssim(pred_HW3, truth_HW3),
  }
  if lpips:
    out["lpips"] = lpips(pred_HW3, truth_HW3)
  return out


def run_votes(file: pathlib.Path, out: pathlib.Path) -> None:
  """Writes votes.json: Elo ratings and win rates with 95 % intervals."""
  votes = read_votes(file)
  ratings = preference.elo(votes)
  intervals = preference.elo_intervals(votes)
  names = sorted(ratings, key=lambda name: -ratings[name])
  elo = {}
  for name in names:
    elo[name] = {"elo": ratings[name], "interval": list(intervals[name])}

  # Win rates of the pairs that met.
  met: dict[str, dict] = {}
  for name in names:
    met[name] = {}
    for other in names:
      if other == name:
        continue
      rate = preference.win_rate(votes, name, other)
      if rate.votes:
        met[name][other] = rate._asdict()
  contents = {
    "votes": len(votes),
    "elo": elo,
    "win_rate": met,
  }
  atomic.write_json(out / "votes.json", contents)

  # The best first.
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
    rows = list(texts.read_table(path))
  except (OSError, texts.TextError) as error:
    raise InputError(f"--votes {path} cannot be read ({error})") from error

  # Line 1 holds the headings.
  votes = []
  for line, row in rows:
    vote = preference.Vote(
      left=cell(row, "left"),
      right=cell(row, "right"),
      outcome=cell(row, "outcome"),
    )
    named = vote.left and vote.right
    if not named or vote.left == vote.right or vote.outcome not in preference.OUTCOMES:
      outcomes = ", ".join(preference.OUTCOMES)
      raise InputError(
        f"--votes {path} line {line}: {row} needs two different models in the columns left and "
        f"right and {outcomes} in the column outcome"
      )
    votes.append(vote)
  if not votes:
    raise InputError(f"--votes {path} holds no vote below its headings left,right,outcome")
  return votes


def cell(row: dict[str, str | None], column: str) -> str:
  """The text of a cell, "" where the line is too short."""
  text = row.get(column) or ""
  return text.strip()
