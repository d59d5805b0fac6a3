r"""The whole ladder at small scale, each stage scored on the same photos.

    python -m launch.ladder --workdir DIR [--seed N] [--scale small] \
        [--pretrained QUICKSTART_WORKDIR]

The stages are pre-training, two mid-trainings, fine-tuning, alignment and distillation.

A chain of the commands that a large run uses, with `:tiny` configurations on procedural objects.
Interrupted, it continues where it stopped. It leaves `ladder.csv`, `ladder.html` and `ladder.png`
in DIR; several DIRs of other seeds are put into one table with `--workdir DIR --summarise DIR1 DIR2
...`. `--dry_run` prints the commands. Three of its steps are its own:

    python -m launch.ladder rated --data PHOTOS --out DIR [--seed N]
    python -m launch.ladder pairs --data PHOTOS --checkpoint RUN --decoder VAE --out DIR [--seed N]
    python -m launch.ladder score --checkpoint RUN --decoder VAE --data DIR --out FILE.json
"""

import argparse
from collections.abc import Callable
import dataclasses
import pathlib
import sys

from launch import quickstart
from launch.console import cli
from launch.console.chain import Step, commands, run_all
from launch.console.flags import dry_run_flag
from launch.console.folders import output_folder
from launch.console.progress import duration
from sam3d_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large the ladder is: objects rendered into photos (three photos each) and steps of every
  stage after pre-training.
  """

  objects: int
  fo: int
  os: int
  sft: int
  dpo: int
  distill: int


SCALES = {
  "full": Scale(400, 600, 600, 400, 100, 600),
  "small": Scale(200, 300, 300, 200, 60, 200),
  "smoke": Scale(20, 2, 2, 2, 2, 2),
}
# added to the seed: photos of the target domain show other objects in other rooms than those of
# mid-training
PHOTO_SEED = 1000
# data that the ladder makes itself -> what it is
MADE = {"rated": "rate shapes, right and faulty ones", "pairs": "pair the model's own samples"}
# as scored, in order
STAGES = ("pretrain", "midtrain_fo", "midtrain_os", "sft", "dpo", "distill", "distill_4_steps")


def main(argv: list[str] | None = None) -> int:
  """Runs the ladder, or one of its own steps; returns the exit code."""
  # a first word that is no flag names one of the own steps
  argv = sys.argv[1:] if argv is None else argv
  step = OWN_STEPS.get(argv[0]) if argv else None
  if step is None:
    return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)
  return cli.run_command(
    step.run, description=step.description, flags=step.flags, config="none", argv=argv[1:]
  )


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--workdir", required=True, help="folder for everything that is made")
  parser.add_argument("--seed", type=int, default=0, help="of data, training and samples")
  parser.add_argument(
    "--scale", choices=sorted(SCALES), default="full", help="amount of data and steps"
  )
  parser.add_argument(
    "--pretrained", help="work folder of a finished launch.quickstart to start from"
  )
  parser.add_argument(
    "--summarise",
    nargs="+",
    metavar="DIR",
    help="put the results of finished ladders into one table, and stop",
  )
  dry_run_flag(parser, "print the commands")


@dataclasses.dataclass(frozen=True)
class Ladder:
  """The chain of one seed."""

  work: pathlib.Path
  # work folder of the quickstart: structure VAE, isolated objects, pre-trained model
  start: pathlib.Path
  seed: int
  scale: Scale

  @property
  def vae(self) -> pathlib.Path:
    return self.start / "vae"

  def data(self, name: str) -> pathlib.Path:
    return self.work / "data" / name

  def trained(self, stage: str) -> pathlib.Path:
    return self.work / stage

  def steps(self) -> list[Step]:
    """Every command, in order."""
    return [*self.data_steps(), *self.stage_steps()]

  def data_steps(self) -> list[Step]:
    """Photos to train on and photos to score on, of other objects; then what is made of them."""
    held_out_seed = self.seed + PHOTO_SEED
    return [
      # to train on
      self.photos("fo", "rp_3do_fo", self.seed),
      self.photos("os", "rp_3do_osr", self.seed),
      # to rate, to pair and, their held-out part, to score on
      self.photos("photos", "rp_3do_osr", held_out_seed),
      self.photos("occluded", "rp_3do_fo", held_out_seed),
      # shapes with ratings, and the latents of all
      self.ladder_data("rated", "--data", self.data("photos")),
      self.encode("fo"),
      self.encode("os"),
      self.encode("rated"),
    ]

  def stage_steps(self) -> list[Step]:
    """Training and score of every stage, each from the one before it."""
    scale = self.scale
    pretrained = self.start / "geometry"
    steps = [self.score("pretrain", pretrained)]

    # Mid-training: flying occlusions, then swapped objects.
    steps += self.stage(
      "midtrain_fo",
      command="pretrain",
      parent=pretrained,
      source="rp_3do_fo",
      data="fo_latents",
      steps=scale.fo,
    )
    steps += self.stage(
      "midtrain_os",
      command="pretrain",
      parent=self.trained("midtrain_fo"),
      source="rp_3do_osr",
      data="os_latents",
      steps=scale.os,
    )

    # Fine-tuning on shapes that were rated well.
    steps += self.stage(
      "sft",
      command="sft",
      parent=self.trained("midtrain_os"),
      source="mitl_3do",
      data="rated_latents",
      steps=scale.sft,
    )

    # Alignment on pairs of the fine-tuned model's own samples.
    steps.append(
      self.ladder_data(
        "pairs",
        "--data",
        self.data("photos"),
        "--checkpoint",
        self.trained("sft"),
        "--decoder",
        self.vae,
      )
    )
    steps += self.stage(
      "dpo",
      command="dpo",
      parent=self.trained("sft"),
      source="preferences",
      data="pairs",
      steps=scale.dpo,
    )

    # Distillation, scored as a model of many steps and as one of four.
    steps += self.stage(
      "distill",
      command="distill",
      parent=self.trained("dpo"),
      source="mitl_3do",
      data="rated_latents",
      steps=scale.distill,
      more=(
        f"--config.eval.decoder={self.vae}",
        f"--config.eval.every={scale.distill}",
        "--config.eval.objects=48",
      ),
    )
    few = ("--shortcut", "--steps", "4")
    steps.append(self.score("distill_4_steps", self.trained("distill"), *few))
    return steps

  def photos(self, name: str, builder: str, seed: int) -> Step:
    """Photos that a builder composes of rendered objects."""
    return Step(
      f"build_{name}",
      f"compose photos ({builder})",
      (
        "launch.build_data",
        "--config",
        f"configs/data/{builder}.py:tiny",
        f"--config.out={self.data(name)}",
        f"--config.seed={seed}",
        f"--config.procedural.count={self.scale.objects}",
      ),
    )

  def ladder_data(self, make: str, *arguments) -> Step:
    """Data that the ladder makes itself."""
    return Step(
      f"make_{make}",
      MADE[make],
      (
        "launch.ladder",
        make,
        "--out",
        str(self.data(make)),
        "--seed",
        str(self.seed),
        *map(str, arguments),
      ),
    )

  def encode(self, name: str) -> Step:
    """Latents of a dataset's shapes, beside it."""
    return Step(
      f"encode_{name}",
      "encode every shape",
      (
        "launch.encode_latents",
        "--data",
        str(self.data(name)),
        "--checkpoint",
        str(self.vae),
        "--out",
        str(self.data(f"{name}_latents")),
      ),
    )

  def stage(
    self,
    name: str,
    *,
    command: str,
    parent: pathlib.Path,
    source: str,
    data: str,
    steps: int,
    more: tuple[str, ...] = (),
  ) -> list[Step]:
    """Training of a stage and its score.

    parent: work folder that it starts from. source: entry of the mixture that reads `data`. more:
    arguments of the training.
    """
    train = (
      "launch." + command,
      "--config",
      f"configs/{name}_geometry.py:tiny",
      "--workdir",
      str(self.trained(name)),
      f"--config.init_from={parent}",
      f"--config.data.mixture.{source}.path={self.data(data)}",
      f"--config.steps={steps}",
      f"--config.seed={self.seed}",
      *more,
    )
    return [
      Step(name, f"train, {steps} steps", train),
      self.score(name, self.trained(name)),
    ]

  def score(self, name: str, checkpoint: pathlib.Path, *more: str) -> Step:
    """Score of a checkpoint on the held-out photos of both kinds."""
    out = self.work / "scores" / f"{name}.json"
    return Step(
      f"score_{name}",
      "score on held-out photos",
      (
        "launch.ladder",
        "score",
        "--checkpoint",
        str(checkpoint),
        "--decoder",
        str(self.vae),
        "--data",
        str(self.data("photos")),
        "--data",
        str(self.data("occluded")),
        "--out",
        str(out),
        "--seed",
        str(self.seed),
        *more,
      ),
    )


def run(args: argparse.Namespace) -> int:
  """Runs what is not done yet and writes the table."""
  work = output_folder(args.workdir, dry_run=args.dry_run, flag="--workdir")
  if args.summarise and args.dry_run:
    print(f"would put {len(args.summarise)} ladders into one table in {work}")
    return 0
  if args.summarise:
    summarise(work, [pathlib.Path(folder) for folder in args.summarise])
    return 0

  # A finished quickstart is taken as it is, else the ladder begins with one of its own.
  if args.pretrained:
    start = pathlib.Path(args.pretrained).absolute()
    before = []
  else:
    start = work / "quickstart"
    before = quickstart_steps(start, args.seed)
  ladder = Ladder(work, start, args.seed, SCALES[args.scale])
  if args.pretrained:
    check_pretrained(args.pretrained, start)
  if args.dry_run:
    print(commands([*before, *ladder.steps()]))
    return 0

  # Each chain skips what an earlier start of it has finished.
  seconds = 0.0
  if before:
    start.mkdir(parents=True, exist_ok=True)
    seconds += run_all(before, start)
  seconds += run_all(ladder.steps(), work)
  summarise(work, [work])
  print(f"time {duration(seconds)}")
  return 0


def summarise(out: pathlib.Path, folders: list[pathlib.Path]) -> None:
  """Writes one table of the ladders in `folders`. Raises InputError for one that has no scores."""
  # The wall, here and below: what knows JAX is imported only once there is work for it, so that
  # --help, --dry_run and the chain itself cost none.
  from launch.ladders import report

  report.write(out, folders, STAGES)


def check_pretrained(given: str, start: pathlib.Path) -> None:
  """Raises InputError unless the quickstart in `start` has trained both of its models."""
  from sam3d_jax.training import checkpoint_steps

  for part in ("vae", "geometry"):
    if not checkpoint_steps.steps(start / part):
      raise InputError(
        f"--pretrained {given}: no checkpoint in {start / part}; give the work folder of "
        "a finished quickstart"
      )


def quickstart_steps(start: pathlib.Path, seed: int) -> list[Step]:
  """The quickstart up to its pre-trained model."""
  steps = quickstart.chain(start, seed)
  names = [step.name for step in steps]
  return steps[: names.index("pretrain") + 1]


def rated_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--data", required=True, type=pathlib.Path, help="dataset of photos")
  parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of the new dataset")
  parser.add_argument("--seed", type=int, default=0, help="of faults and ratings, or of samples")
  dry_run_flag(parser, "check what is read")


def pairs_flags(parser: argparse.ArgumentParser) -> None:
  rated_flags(parser)
  weights_flags(parser)


def score_flags(parser: argparse.ArgumentParser) -> None:
  weights_flags(parser)
  parser.add_argument(
    "--data", required=True, action="append", help="dataset of photos; may be given more than once"
  )
  parser.add_argument("--split", default="test")
  parser.add_argument("--max", type=int, default=120, help="objects scored of each dataset")
  parser.add_argument("--shortcut", action="store_true", help="4 steps of the distilled sampler")
  parser.add_argument("--steps", type=int, help="sampling steps")
  parser.add_argument("--seed", type=int, default=0, help="of the samples' noise")
  parser.add_argument("--out", required=True, type=pathlib.Path, help="JSON file")
  dry_run_flag(parser, "check what is read")


def weights_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--checkpoint", required=True, help="work folder of the model")
  parser.add_argument("--decoder", required=True, help="work folder of the structure VAE")


def run_rated(args: argparse.Namespace) -> None:
  from launch.ladders import data

  if args.dry_run:
    return rehearse(args, [args.data])
  data.make_rated(args.data, args.out, args.seed)


def run_pairs(args: argparse.Namespace) -> None:
  from launch.ladders import data
  from sam3d_jax.inference.weights import WeightsConfig

  weights = WeightsConfig(checkpoint=args.checkpoint, decoder=args.decoder)
  if args.dry_run:
    return rehearse(args, [args.data], weights)
  data.make_pairs(args.data, args.out, weights, args.seed)


def run_score(args: argparse.Namespace) -> None:
  from launch.ladders import score
  from sam3d_jax.inference.weights import WeightsConfig

  weights = WeightsConfig(
    checkpoint=args.checkpoint,
    decoder=args.decoder,
    steps=args.steps,
    shortcut=args.shortcut,
  )
  if args.dry_run:
    return rehearse(args, args.data, weights)
  config = score.ScoreConfig(
    weights=weights,
    data=tuple(args.data),
    split=args.split,
    most=args.max,
    seed=args.seed,
  )
  score.run(config, args.out)


def rehearse(args: argparse.Namespace, folders: list, weights=None) -> None:
  """Says what an own step would read and write. Raises InputError for what is not there."""
  from data_pipelines.format import records
  from sam3d_jax.inference import weights as weights_lib

  for folder in folders:
    print(f"would read {records.open_dataset(folder).name} in {folder}")
  if weights is not None:
    weights_lib.check(weights)
    print(f"would sample from {weights.checkpoint}, decoded by {weights.decoder}")
  print(f"would write {args.out}")


@dataclasses.dataclass(frozen=True)
class OwnStep:
  """A step of the chain that no other command does."""

  description: str
  flags: Callable[[argparse.ArgumentParser], None]
  run: Callable[[argparse.Namespace], None]


OWN_STEPS = {
  "rated": OwnStep("Rates the shapes of photos, right and faulty ones.", rated_flags, run_rated),
  "pairs": OwnStep("Pairs a model's own samples of photos.", pairs_flags, run_pairs),
  "score": OwnStep("Scores a stage on held-out photos.", score_flags, run_score),
}


if __name__ == "__main__":
  raise SystemExit(main())
