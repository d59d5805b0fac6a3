"""The batch side of the data engine: photos in, candidates for people to choose from, data out.

    python -m launch.engine create    --project ENGINE
    python -m launch.engine add       --project ENGINE --images PHOTOS
    python -m launch.engine propose   --project ENGINE --generator mine=meshes:MESHES --samples 8
    python -m launch.engine compare   --project ENGINE --generator ours=meshes:OURS \\
                                      --generator theirs=meshes:THEIRS
    python -m launch.engine votes     --project ENGINE --out votes.csv
    python -m launch.engine status    --project ENGINE --json
    python -m launch.engine decisions --project ENGINE
    python -m launch.engine export    --project ENGINE --out ITEMS --iteration 0 --alpha 3
    python -m launch.engine simulate  --url http://127.0.0.1:8008 --annotators 4 --decisions 100
    python -m launch.engine token     --project ENGINE --name renderer --role lead

People work in the app of launch.annotate; its decisions are kept in the project's database.
`export` writes the folders that launch.build_data reads.
"""

import argparse
from collections.abc import Callable
import dataclasses
import json
import pathlib
import statistics
import sys
import time

from launch.console import cli, progress, refusals
from launch.console.flags import dry_run_flag
from launch.console.folders import check_file, check_folder
from sam3d_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Action:
  """A word of the command: its flags, and what it does."""

  help: str
  flags: Callable[[argparse.ArgumentParser], None]
  run: Callable[[argparse.Namespace], None]


def project_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--project", required=True, type=pathlib.Path, metavar="DIR")
  parser.add_argument("--db", default="", metavar="URL", help="postgresql://… in place of SQLite")


# The rooms load SQLAlchemy, which --help does without.


def create_flags(parser: argparse.ArgumentParser) -> None:
  project_flags(parser)
  parser.add_argument(
    "--store", default="", metavar="URL", help="folder or fsspec URL of the files"
  )
  parser.add_argument("--family", default="sam3d", help="generator family that is trained")
  parser.add_argument("--seed", type=int, default=0, help="of orders and sides")
  dry_run_flag(parser, "check the folder and the database")


def create(args: argparse.Namespace) -> None:
  """Makes a project."""
  from data_pipelines.engine import database, project

  settings = project.Settings(
    family=args.family, database=args.db, store=args.store, seed=args.seed
  )
  if args.dry_run:
    project.check_new(args.project)
    if args.db:
      database.Database(args.db)
    print(f"would make a project in {args.project}")
    return
  made = project.create(args.project, settings)
  print(f"project {args.project}: database {made.database.shown}, files in {made.blobs.url}")
  made.close()


def add_flags(parser: argparse.ArgumentParser) -> None:
  project_flags(parser)
  parser.add_argument(
    "--images", required=True, metavar="DIR", help="photos, as launch.sample --images takes them"
  )
  parser.add_argument("--license", default="", help="of the photos")
  budget_flag(parser, "photos")
  dry_run_flag(parser, "check the photos")


def add(args: argparse.Namespace) -> None:
  """Takes photos in, with masks and point maps where there are some."""
  from data_pipelines.engine import adding
  from launch.photos import jobs

  found, skipped = jobs.find(jobs.PhotoSource(images=args.images), args.project)
  print(f"{len(found)} photos in {args.images}, {len(skipped)} files passed over")
  refused = refusals.Refusals("photos")
  if args.dry_run:
    for job in found:
      with refused.input(job.image):
        jobs.read(job)
    refused.check(len(found), args.quarantine_budget)
    return

  # a photo that cannot be used costs itself
  engine = opened(args)
  new = 0
  with progress.Progress(len(found), "photos") as bar:
    for job in found:
      with refused.input(job.image):
        new += adding.add_photo(engine, job.name, jobs.read(job), args.license)
      bar.update()
  engine.close()
  print(f"{new} photos added, {len(found) - new - len(refused.found)} were there")
  finish(args, refused, len(found))


def budget_flag(parser: argparse.ArgumentParser, what: str) -> None:
  parser.add_argument(
    "--quarantine_budget",
    type=float,
    default=0.0,
    metavar="SHARE",
    help=f"share of the {what} that may be refused without ending in code 2 (%(default)s)",
  )


def finish(args: argparse.Namespace, refused, total: int) -> None:
  """What was refused stands in the project. Raises InputError where it is more than allowed."""
  refused.write(args.project)
  refused.check(total, args.quarantine_budget)
  if refused.found:
    print(refused.said(total), file=sys.stderr)


def generator_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--generator",
    required=True,
    action="append",
    metavar="NAME=KIND:PATH",
    help="where candidates come from; several share the candidates",
  )
  parser.add_argument("--iteration", type=int, default=0, help="round (%(default)s)")
  models = parser.add_argument_group("generators that are models")
  models.add_argument("--decoder", metavar="DIR", help="work folder of the structure VAE")
  models.add_argument("--which", default="ema", help="raw, ema or ema:DECAY (%(default)s)")
  models.add_argument("--steps", type=int, help="of the sampler")
  models.add_argument("--seed", type=int, default=0, help="of the noise")
  models.add_argument(
    "--draws", type=int, default=0, help="samples an object that meet in a tournament, as 50"
  )
  models.add_argument("--reward", default="mask_iou", help="of the tournament, as launch.sample's")
  models.add_argument(
    "--reward_models", nargs=2, metavar="DIR", help="aligned and reference model of `implicit`"
  )
  budget_flag(parser, "candidates")


def propose_flags(parser: argparse.ArgumentParser) -> None:
  project_flags(parser)
  generator_flags(parser)
  parser.add_argument("--samples", type=int, help="candidates an object; default: the project's")
  parser.add_argument(
    "--kind", default="shape", choices=("shape", "texture"), help="what people choose (%(default)s)"
  )
  dry_run_flag(parser, "check the generators and the project")


def propose(args: argparse.Namespace) -> None:
  """Gives objects without candidates some, and opens their tasks."""
  if args.samples is not None and args.samples < 1:
    raise InputError(f"--samples {args.samples}: it must be positive")
  chosen = chosen_generators(args)
  open_tasks(args, chosen, args.samples, args.kind)


def compare_flags(parser: argparse.ArgumentParser) -> None:
  project_flags(parser)
  generator_flags(parser)
  dry_run_flag(parser, "check the generators and the project")


def compare(args: argparse.Namespace) -> None:
  """Opens blind comparisons of two generators, one candidate each, of every object."""
  chosen = chosen_generators(args)
  if len(chosen) != 2 or chosen[0].name == chosen[1].name:
    raise InputError("compare takes two --generator of different names")
  open_tasks(args, chosen, 2, "comparison")


def chosen_generators(args: argparse.Namespace) -> list:
  """The generators of the flags. Raises InputError."""
  from launch.engines import generators

  if args.reward == "implicit" and not args.reward_models:
    raise InputError("--reward implicit needs --reward_models ALIGNED REFERENCE")
  drawing = generators.Draws(
    draws=args.draws,
    reward=args.reward,
    models=tuple(args.reward_models) if args.reward_models else None,
    decoder=args.decoder,
    which=args.which,
    steps=args.steps,
    seed=args.seed,
  )
  return [generators.parse(text, drawing) for text in args.generator]


def open_tasks(args: argparse.Namespace, chosen: list, samples: int | None, kind: str) -> None:
  """Candidates of a kind for the objects that have none, and their tasks.

  samples: an object; None: as many as the project says.
  """
  from data_pipelines.engine import proposals
  from launch.engines import generators

  if looked_at(args):
    return
  engine = opened(args)
  samples = samples or engine.settings.candidates
  targets = proposals.wanting(engine, args.iteration, kind)
  print(f"{len(targets)} objects wait for candidates of iteration {args.iteration}")
  refused = refusals.Refusals("candidates")
  sources = []
  for generator, share in zip(chosen, generators.shares(chosen, samples), strict=True):
    sources.append(generator.propose(engine, targets, share, refused))
  opened_tasks = found = 0
  with progress.Progress(len(targets), "objects") as bar:
    for target, *proposed in zip(targets, *sources, strict=True):
      candidates = [one for of_generator in proposed for one in of_generator]
      found += len(candidates)
      # of a comparison there are two or none
      if kind == "comparison" and len(candidates) < samples:
        candidates = []
      task = proposals.propose(engine, target.id, args.iteration, candidates, kind)
      opened_tasks += task is not None
      bar.update()
  without = len(targets) - opened_tasks
  print(f"{opened_tasks} tasks opened, {without} objects still without candidates")
  engine.close()
  finish(args, refused, found + len(refused.found))


def votes_flags(parser: argparse.ArgumentParser) -> None:
  project_flags(parser)
  parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE.csv")
  dry_run_flag(parser, "check the project and the file")


def votes(args: argparse.Namespace) -> None:
  """Writes the votes of blind comparisons, as launch.evaluate --votes reads them."""
  from data_pipelines.engine import reports
  from sam3d_jax.files import atomic

  check_file(args.out, "--out")
  if looked_at(args):
    return
  engine = opened(args)
  lines = ["left,right,outcome"]
  for left, right, outcome in reports.votes(engine):
    lines.append(f"{left},{right},{outcome}")
  engine.close()
  atomic.write_text(args.out, "\n".join(lines) + "\n")
  print(f"{len(lines) - 1} votes in {args.out}; next: python -m launch.evaluate --votes {args.out}")


def status_flags(parser: argparse.ArgumentParser) -> None:
  project_flags(parser)
  parser.add_argument("--json", action="store_true", help="print JSON")
  dry_run_flag(parser, "check the project")


def status(args: argparse.Namespace) -> None:
  """Prints what the project holds, in numbers."""
  from data_pipelines.engine import reports

  if looked_at(args):
    return
  engine = opened(args)
  found = reports.status(engine)
  engine.close()
  if args.json:
    print(json.dumps(found, indent=2))
    return
  print(f"{found['photos']} photos, {found['objects']} objects, {found['candidates']} candidates")
  for stage, states in found["tasks"].items():
    told = ", ".join(f"{number} {state}" for state, number in states.items())
    kinds = found["decisions"].get(stage, {})
    decided = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    print(f"  {stage:<11} tasks: {told}; decisions: {decided or 'none'}")
  print(f"{found['decisions_last_hour']} decisions in the last hour, {found['leased']} tasks held")
  for generator, counts in found["sources"].items():
    share = counts["won"] / counts["shown"]
    print(f"  {generator}: {counts['won']} of {counts['shown']} candidates won ({share:.0%})")


def decisions_flags(parser: argparse.ArgumentParser) -> None:
  project_flags(parser)
  dry_run_flag(parser, "check the project")


def decisions(args: argparse.Namespace) -> None:
  """Prints every stored decision as a line of JSON."""
  from data_pipelines.engine import reports

  if looked_at(args):
    return
  engine = opened(args)
  for line in reports.decisions(engine):
    print(json.dumps(line))
  engine.close()


def export_flags(parser: argparse.ArgumentParser) -> None:
  project_flags(parser)
  parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
  parser.add_argument("--iteration", type=int, default=0, help="the last one (%(default)s)")
  parser.add_argument("--alpha", type=float, default=3.0, help="least rating (%(default)s)")
  dry_run_flag(parser, "check the project and the folder")


def export(args: argparse.Namespace) -> None:
  """Writes annotation folders."""
  from data_pipelines.engine import export as writing

  check_folder(args.out, "--out")
  if looked_at(args):
    return
  engine = opened(args)
  summary = writing.export(engine, args.out, iteration=args.iteration, alpha=args.alpha)
  engine.close()
  print(json.dumps(summary, indent=2))
  source = args.out / writing.ITEMS
  print(
    f"next: python -m launch.build_data --config configs/data/mitl_3do.py "
    f"--config.source={source} --config.out=MITL --config.min_rating={args.alpha:g}"
  )


def simulate_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--url", required=True, help="of a running launch.annotate")
  parser.add_argument("--annotators", type=int, default=1)
  parser.add_argument("--decisions", type=int, default=100)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--noise", type=float, default=0.1, help="of a score, 0 to 1 (%(default)s)")
  parser.add_argument("--scores", metavar="F.json", help="known truth: mesh digest -> 0..1")
  parser.add_argument("--token", default="", help="bearer token, where the app asks for one")
  parser.add_argument("--think", type=float, default=0.0, help="mean seconds before a decision")
  parser.add_argument("--looks", action="store_true", help="load the meshes, as the page does")
  parser.add_argument("--log", type=pathlib.Path, metavar="F.jsonl", help="a line a decision")
  dry_run_flag(parser, "check the words and the scores")


def simulate(args: argparse.Namespace) -> None:
  """Scripted annotators, through the HTTP API."""
  from data_pipelines.engine import simulate as scripted

  scores = {}
  if args.scores:
    try:
      scores = json.loads(pathlib.Path(args.scores).read_text())
    except (OSError, ValueError) as error:
      raise InputError(f"--scores {args.scores}: {error}") from error
  script = scripted.Script(
    url=args.url.rstrip("/"),
    annotators=args.annotators,
    decisions=args.decisions,
    seed=args.seed,
    noise=args.noise,
    scores=scores,
    token=args.token,
    think=args.think,
    looks=args.looks,
  )
  if args.dry_run:
    print(f"would make {script.decisions} decisions at {script.url}")
    return
  begun = time.monotonic()
  made = scripted.run(script, args.log)
  print(f"{made.acknowledged} decisions acknowledged in {time.monotonic() - begun:.1f} s")
  if len(made.seconds) > 1:
    cuts = statistics.quantiles(made.seconds, n=20, method="inclusive")
    print(f"a decision: median {1000 * cuts[9]:.0f} ms, p95 {1000 * cuts[18]:.0f} ms")


def token_flags(parser: argparse.ArgumentParser) -> None:
  project_flags(parser)
  parser.add_argument("--name", required=True, help="of the person or program")
  parser.add_argument("--role", default="annotator", help="annotator, artist or lead")
  parser.add_argument("--revoke", action="store_true", help="send the person away instead")
  dry_run_flag(parser, "check the project")


def token(args: argparse.Namespace) -> None:
  """Prints a new bearer token, which replaces the one before; or lets a person in no more."""
  from data_pipelines.engine import people

  if looked_at(args):
    return
  engine = opened(args)
  with engine.database.transaction() as session:
    person = people.named(session, args.name, args.role, readmit=True)
    if args.revoke:
      people.send_away(session, person)
      print(f"{args.name} is let in no more; what they decided stays")
    else:
      print(people.give_token(session, person))
  engine.close()


def upgrade_flags(parser: argparse.ArgumentParser) -> None:
  project_flags(parser)
  dry_run_flag(parser, "check the project")


def upgrade(args: argparse.Namespace) -> None:
  """Brings the tables to this version of the engine."""
  from data_pipelines.engine import project

  if looked_at(args):
    return
  engine = project.unchecked(args.project, args.db)
  engine.database.upgrade()
  print(f"{engine.database.shown}: its tables are of this version")
  engine.close()


def looked_at(args: argparse.Namespace) -> bool:
  """Whether this is a dry run; its project then has been looked at, its database not touched."""
  from data_pipelines.engine import project

  if not args.dry_run:
    return False
  engine = project.unchecked(args.project, args.db)
  print(f"project {args.project}: database {engine.database.shown}; stopped before it")
  return True


def opened(args: argparse.Namespace):
  """The project of the flags."""
  from data_pipelines.engine import project

  return project.read(args.project, args.db)


ACTIONS = {
  "create": Action("make a project", create_flags, create),
  "add": Action("take photos in", add_flags, add),
  "propose": Action("candidates for objects", propose_flags, propose),
  "compare": Action("blind comparisons of two generators", compare_flags, compare),
  "votes": Action("their votes, for launch.evaluate", votes_flags, votes),
  "status": Action("what the project holds", status_flags, status),
  "decisions": Action("every decision as JSON lines", decisions_flags, decisions),
  "export": Action("annotation folders", export_flags, export),
  "simulate": Action("scripted annotators", simulate_flags, simulate),
  "token": Action("a bearer token", token_flags, token),
  "upgrade": Action("bring the tables to this version", upgrade_flags, upgrade),
}


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  words = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
  for name, action in ACTIONS.items():
    sub = words.add_parser(name, help=action.help, allow_abbrev=False)
    action.flags(sub)


def run(args: argparse.Namespace) -> None:
  """Does what was asked for."""
  ACTIONS[args.action].run(args)


if __name__ == "__main__":
  raise SystemExit(main())
