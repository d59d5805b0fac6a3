"""Shape and layout scores of pairs of meshes: launch.evaluate --pairs."""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import hashlib
import json
import os
import pathlib
import time

from data_pipelines.build import limited, processes
from launch.console.progress import Progress
from sam3d_jax.errors import InputError, Refused
from sam3d_jax.evaluation import aggregate, layout, report, shape, surface
from sam3d_jax.files import atomic, blame, meshes, texts
from sam3d_jax.render.mesh import Mesh

SHAPE = tuple(shape.WORST)
LAYOUT = tuple(layout.WORST)
NAMES = (*SHAPE, *LAYOUT)
PHASES = ("reading", "shape", "layout")
# optional in an object's folder: group, subject and voxel_iou, shown beside the scores
RECORD = "sample.json"
NOTES = ("group", "subject", "voxel_iou", "seconds")


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
  refused: Sequence[dict] = (),
  limits: limited.Limits = limited.NONE,
) -> None:
  """Scores every pair that is not scored yet and writes metrics.json, metrics.csv and report.html.

  run: where the predictions come from, for the record. refused: objects of the run that could not
  be used and have no pair. limits: of reading a mesh.
  """
  # Score what has no score of these files and this protocol.
  folders = find_pairs(pairs)
  (out / "objects").mkdir(exist_ok=True)
  todo = {}
  for folder in folders:
    identity = pair_identity(folder, protocol)
    if not is_scored(result_file(out, folder), identity):
      todo[folder] = identity
  score_all(out, todo, protocol, workers, len(folders), limits)

  # Read all scores, with what the folders say beside them.
  rows = {}
  seconds = {phase: [] for phase in ("sampling", *PHASES)}
  for folder in folders:
    result = json.loads(result_file(out, folder).read_text())
    row = result["scores"] | notes(folder)
    if "seconds" in row:
      seconds["sampling"].append(row.pop("seconds"))
    for phase in PHASES:
      seconds[phase].append(result["seconds"][phase])
    rows[folder.name] = row

  # Voxels are a metric where the set knows them.
  names = NAMES
  if any(row.get("voxel_iou") is not None for row in rows.values()):
    names = (*NAMES, "voxel_iou")

  # Objects whose truth cannot be used stay out of the means.
  scored = {name: row for name, row in rows.items() if row["scored"]}
  total = aggregate.summarise(scored, names)
  total["objects"] = len(rows)
  total["scored"] = len(scored)
  total["with_pose"] = sum(row["icp_rot_deg"] is not None for row in scored.values())
  total["problems"] = sum(bool(row["problem"]) for row in rows.values())
  groups = aggregate.by_group(scored, names)
  timing = {phase: sum(spent) / len(spent) for phase, spent in seconds.items() if spent}

  # The files.
  contents = {
    "aggregate": total,
    "groups": groups,
    "objects": rows,
    "protocol": dataclasses.asdict(protocol),
    "run": run,
    "seconds_per_object": {phase: round(mean, 3) for phase, mean in timing.items()},
  }
  if refused:
    total["refused"] = len(refused)
    contents["refused"] = list(refused)
  atomic.write_json(out / "metrics.json", contents)
  columns = (*names, "group", "subject", "scored", "problem")
  aggregate.write_csv(out / "metrics.csv", rows, columns)
  page = report.html(pairs, rows, total, groups, names, protocol, run)
  (out / "report.html").write_text(page)

  # What the terminal shows.
  print(report.text_table(total, groups, names))
  shown = ", ".join(f"{phase} {mean:.2f}" for phase, mean in timing.items())
  print(f"seconds an object: {shown}")
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
    found = texts.read_json(path)
    return {name: found[name] for name in NOTES if name in found}
  except (ValueError, TypeError) as error:
    raise InputError(f"{path}: not a JSON object ({error})") from error


def find_pairs(folder: pathlib.Path) -> list[pathlib.Path]:
  """The object folders, by name: those that hold a file `truth.*` or `pred.*`. Raises InputError if
  there is none.
  """
  if not folder.is_dir():
    raise InputError(f"--pairs {folder} is not a folder")

  # An object's folder has one of the two files at least; what is missing is scored as missing.
  found = []
  for candidate in sorted(folder.iterdir()):
    if not candidate.is_dir():
      continue
    files = [*candidate.glob("truth.*"), *candidate.glob("pred.*")]
    if files:
      found.append(candidate)
  if not found:
    suffixes = ", ".join(meshes.SUFFIXES)
    raise InputError(f"--pairs {folder} has no folder with a file truth.* and pred.* ({suffixes})")
  return found


def pair_identity(folder: pathlib.Path, protocol: shape.ShapeProtocol) -> str:
  """Digest of the files and the protocol: a score that carries it is still valid."""
  digest = hashlib.sha256(repr(protocol).encode())
  for path in sorted(folder.iterdir()):
    # the record says nothing that is scored
    if path.is_file() and path.name != RECORD:
      digest.update(path.name.encode())
      digest.update(path.read_bytes())
  return digest.hexdigest()


def result_file(out: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  return out / "objects" / f"{folder.name}.json"


def is_scored(path: pathlib.Path, identity: str) -> bool:
  """Whether the scores of this identity are there. Raises InputError for a file of that name that
  this command has not written.
  """
  if not path.exists():
    return False
  try:
    result = texts.read_json(path)
    return result["identity"] == identity
  except (texts.TextError, TypeError, KeyError) as error:
    raise InputError(
      f"{path} was not written by this command and is not touched: give another folder with --out, "
      "or move it away"
    ) from error


def score_all(
  out: pathlib.Path,
  todo: dict,
  protocol: shape.ShapeProtocol,
  workers: int,
  total: int,
  limits: limited.Limits,
) -> None:
  """Scores pairs in parallel processes; each result is on disk as soon as it is known."""
  with Progress(total, "scoring", "pairs", done=total - len(todo)) as bar:

    def keep(folder, scores):
      """The identity says later whether the scores are still valid."""
      result = {"identity": todo[folder]} | scores
      atomic.write_json(result_file(out, folder), result)
      bar.update()

    if workers == 1:
      for folder in todo:
        keep(folder, score_pair(folder, protocol, limits))
      return

    # Results are kept as they come, whoever is first.
    with processes.pool(workers) as pool:
      jobs = {}
      for folder in todo:
        job = pool.submit(score_pair, folder, protocol, limits)
        jobs[job] = folder
      for job in futures.as_completed(jobs):
        keep(jobs[job], job.result())


def score_pair(
  folder: pathlib.Path, protocol: shape.ShapeProtocol, limits: limited.Limits = limited.NONE
) -> dict:
  """`scores`: all metrics of one pair, `scored` (false if the truth cannot be used) and `problem`
  (empty if there is none). `seconds`: wall time of each of PHASES. limits: of reading a mesh.
  """
  try:
    return score_surfaces(folder, protocol, limits)
  # Two surfaces that can be read and not compared cost this pair: nothing is said of either.
  except Exception as error:
    if not (blame.is_of_the_file(error) or isinstance(error, MemoryError)):
      raise
    nothing = shape.shape_metrics(None, None, protocol)
    return {
      "scores": {
        **nothing,
        **dict.fromkeys(LAYOUT),
        "scored": False,
        "problem": f"{folder.name}: cannot be scored ({blame.said(error)})",
      },
      "seconds": dict.fromkeys(PHASES, 0.0),
    }


def score_surfaces(
  folder: pathlib.Path, protocol: shape.ShapeProtocol, limits: limited.Limits
) -> dict:
  """As `score_pair`. Raises what scoring raises."""
  # The parts, timed.
  clock = [time.monotonic()]
  truth, truth_problem = read(folder, "truth", limits)
  pred, pred_problem = read(folder, "pred", limits)
  clock.append(time.monotonic())
  scores = shape.shape_metrics(pred, truth, protocol)
  clock.append(time.monotonic())
  placed, pose_problem = layout_scores(folder, pred, truth, protocol)
  clock.append(time.monotonic())

  # What was wrong, and how long each phase took.
  problems = [truth_problem, pred_problem, pose_problem]
  seconds = {}
  for phase, start, end in zip(PHASES, clock[:-1], clock[1:], strict=True):
    seconds[phase] = round(end - start, 3)
  return {
    "scores": {
      **scores,
      **placed,
      "scored": truth is not None,
      "problem": "; ".join(filter(None, problems)),
    },
    "seconds": seconds,
  }


def read(
  folder: pathlib.Path, stem: str, limits: limited.Limits = limited.NONE
) -> tuple[Mesh | None, str]:
  """The surface, None if there is none, and what is wrong with it ("" if nothing)."""
  # Whatever is wrong with the file becomes a score, not the end of the run.
  try:
    path = surface.find_mesh(folder, stem)
    if path is None:
      return None, f"{folder / stem}.* is missing"
    found = limited.call(limits, surface.load_surface, path)
    problem = ""
    if found.non_finite:
      problem = f"{path}: {found.non_finite} faces or points are not finite and were left out"
    return found.mesh, problem
  except surface.SurfaceError as error:
    return None, str(error)
  except Refused as error:
    return None, f"{folder / stem}.*: {error.detail}"
  except RecursionError as error:
    return None, f"{folder / stem}.*: cannot be read ({blame.said(error)})"


def layout_scores(
  folder: pathlib.Path, pred, truth, protocol: shape.ShapeProtocol
) -> tuple[dict, str]:
  """Layout metrics, all None where the truth has no pose.

  An unusable predicted pose scores worst.
  """
  # Without a true pose there is nothing to compare with.
  truth_file = folder / "truth_pose.json"
  if truth is None or not truth_file.exists():
    return dict.fromkeys(LAYOUT), ""
  try:
    truth_pose = layout.load_pose(truth_file)
  except layout.PoseError as error:
    return dict.fromkeys(LAYOUT), str(error)

  # A predicted pose that is missing is the prediction's fault.
  try:
    pred_pose = layout.load_pose(folder / "pred_pose.json")
  except layout.PoseError as error:
    return dict(layout.WORST), str(error)
  scores = layout.layout_metrics(
    pred,
    pred_pose,
    truth,
    truth_pose,
    protocol.icp,
    seed=protocol.seed,
  )
  return scores, ""
