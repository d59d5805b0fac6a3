"""Shape and layout scores of pairs of meshes: launch.evaluate --pairs."""

from concurrent import futures
import dataclasses
import hashlib
import json
import os
import pathlib
import time

from data_pipelines.build import processes
from launch.console.progress import Progress
from sam3d_jax.errors import InputError
from sam3d_jax.evaluation import aggregate, layout, report, shape, surface
from sam3d_jax.files import atomic, meshes
from sam3d_jax.render.mesh import Mesh

SHAPE = tuple(shape.WORST)
LAYOUT = tuple(layout.WORST)
NAMES = (*SHAPE, *LAYOUT)
PHASES = ("reading", "shape", "layout")
# optional in an object's folder: group, subject and voxel_iou, shown beside the scores
RECORD = "sample.json"


def workers_of(asked: int) -> int:
  """Processes that score: those asked for, or one a core if that is 0."""
  return asked or os.cpu_count() or 1


def evaluate(
  pairs: pathlib.Path,
  out: pathlib.Path,
  protocol: shape.ShapeProtocol,
  workers: int,
  *,
  run: dict | None = None,
) -> None:
  """Scores every pair that is not scored yet and writes metrics.json, metrics.csv and report.html.

  run: where the predictions come from, for the record.
  """
  folders = find_pairs(pairs)
  (out / "objects").mkdir(exist_ok=True)
  todo = {}
  for folder in folders:
    identity = pair_identity(folder, protocol)
    if not is_scored(result_file(out, folder), identity):
      todo[folder] = identity
  score_all(out, todo, protocol, workers, len(folders))
  results = {f.name: json.loads(result_file(out, f).read_text()) for f in folders}
  rows = {f.name: results[f.name]["scores"] | notes(f) for f in folders}
  names = NAMES + (
    ("voxel_iou",) if any(row.get("voxel_iou") is not None for row in rows.values()) else ()
  )
  scored = {name: row for name, row in rows.items() if row["scored"]}
  total = aggregate.summarise(scored, names) | {
    "objects": len(rows),
    "scored": len(scored),
    "with_pose": sum(row["icp_rot_deg"] is not None for row in scored.values()),
    "problems": sum(bool(row["problem"]) for row in rows.values()),
  }
  groups = aggregate.by_group(scored, names)
  timing = {
    phase: sum(r["seconds"][phase] for r in results.values()) / len(results) for phase in PHASES
  }
  sampling = [row.pop("seconds") for row in rows.values() if "seconds" in row]
  if sampling:
    timing = {"sampling": sum(sampling) / len(sampling)} | timing
  atomic.write_json(
    out / "metrics.json",
    {
      "aggregate": total,
      "groups": groups,
      "objects": rows,
      "protocol": dataclasses.asdict(protocol),
      "run": run,
      "seconds_per_object": {phase: round(seconds, 3) for phase, seconds in timing.items()},
    },
  )
  aggregate.write_csv(out / "metrics.csv", rows, (*names, "group", "subject", "scored", "problem"))
  (out / "report.html").write_text(report.html(pairs, rows, total, groups, names, protocol, run))
  print(report.text_table(total, groups, names))
  print(
    "seconds an object: " + ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in timing.items())
  )
  print(
    f"{len(rows)} objects, {len(scored)} scored, {total['problems']} with a problem\n"
    f"{out / 'metrics.json'}, metrics.csv, report.html"
  )


def notes(folder: pathlib.Path) -> dict:
  """What the folder says about itself beside its meshes and poses. Raises InputError for a record
  that is no JSON object.
  """
  path = folder / RECORD
  if not path.exists():
    return {}
  try:
    found = json.loads(path.read_text())
    return {
      name: found[name] for name in ("group", "subject", "voxel_iou", "seconds") if name in found
    }
  except (ValueError, TypeError) as error:
    raise InputError(f"{path}: not a JSON object ({error})") from error


def find_pairs(folder: pathlib.Path) -> list[pathlib.Path]:
  """The object folders, by name: those that hold a file `truth.*` or `pred.*`. Raises InputError if
  there is none.
  """
  if not folder.is_dir():
    raise InputError(f"--pairs {folder} is not a folder")
  found = [
    f
    for f in sorted(folder.iterdir())
    if f.is_dir() and (list(f.glob("truth.*")) or list(f.glob("pred.*")))
  ]
  if not found:
    raise InputError(
      f"--pairs {folder} has no folder with a file truth.* and pred.* "
      f"({', '.join(meshes.SUFFIXES)})"
    )
  return found


def pair_identity(folder: pathlib.Path, protocol: shape.ShapeProtocol) -> str:
  """Digest of the files and the protocol: a score that carries it is still valid."""
  digest = hashlib.sha256(repr(protocol).encode())
  for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name != RECORD):
    digest.update(path.name.encode() + path.read_bytes())
  return digest.hexdigest()


def result_file(out: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  return out / "objects" / f"{folder.name}.json"


def is_scored(path: pathlib.Path, identity: str) -> bool:
  return path.exists() and json.loads(path.read_text())["identity"] == identity


def score_all(
  out: pathlib.Path, todo: dict, protocol: shape.ShapeProtocol, workers: int, total: int
) -> None:
  """Scores pairs in parallel processes; each result is on disk as soon as it is known."""
  with Progress(total, "scoring", "pairs", done=total - len(todo)) as bar:

    def keep(folder, scores):
      atomic.write_json(result_file(out, folder), {"identity": todo[folder]} | scores)
      bar.update()

    if workers == 1:
      for folder in todo:
        keep(folder, score_pair(folder, protocol))
      return
    with processes.pool(workers) as pool:
      jobs = {pool.submit(score_pair, folder, protocol): folder for folder in todo}
      for job in futures.as_completed(jobs):
        keep(jobs[job], job.result())


def score_pair(folder: pathlib.Path, protocol: shape.ShapeProtocol) -> dict:
  """`scores`: all metrics of one pair, `scored` (false if the truth cannot be used) and `problem`
  (empty if there is none). `seconds`: wall time of each of PHASES.
  """
  clock = [time.monotonic()]
  truth, truth_problem = read(folder, "truth")
  pred, pred_problem = read(folder, "pred")
  clock.append(time.monotonic())
  scores = shape.shape_metrics(pred, truth, protocol)
  clock.append(time.monotonic())
  placed, pose_problem = layout_scores(folder, pred, truth, protocol)
  clock.append(time.monotonic())
  problem = "; ".join(p for p in (truth_problem, pred_problem, pose_problem) if p)
  return {
    "scores": scores | placed | {"scored": truth is not None, "problem": problem},
    "seconds": {
      phase: round(end - start, 3)
      for phase, start, end in zip(PHASES, clock, clock[1:], strict=False)
    },
  }


def read(folder: pathlib.Path, stem: str) -> tuple[Mesh | None, str]:
  """The surface, None if there is none, and what is wrong with it ("" if nothing)."""
  try:
    path = surface.find_mesh(folder, stem)
    if path is None:
      return None, f"{folder / stem}.* is missing"
    found = surface.load_surface(path)
    problem = ""
    if found.non_finite:
      problem = f"{path}: {found.non_finite} faces or points are not finite and were left out"
    return found.mesh, problem
  except surface.SurfaceError as error:
    return None, str(error)


def layout_scores(
  folder: pathlib.Path, pred, truth, protocol: shape.ShapeProtocol
) -> tuple[dict, str]:
  """Layout metrics, all None where the truth has no pose.

  An unusable predicted pose scores worst.
  """
  unknown = dict.fromkeys(LAYOUT)
  truth_file, pred_file = folder / "truth_pose.json", folder / "pred_pose.json"
  if truth is None or not truth_file.exists():
    return unknown, ""
  try:
    truth_pose = layout.load_pose(truth_file)
  except layout.PoseError as error:
    return unknown, str(error)
  try:
    return layout.layout_metrics(
      pred, layout.load_pose(pred_file), truth, truth_pose, protocol.icp, seed=protocol.seed
    ), ""
  except layout.PoseError as error:
    return dict(layout.WORST), str(error)
