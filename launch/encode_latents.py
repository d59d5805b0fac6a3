"""Encodes the shapes of a dataset with a structure VAE: shards in, the same shards with latents
out.

    python -m launch.encode_latents --data DIR --checkpoint VAE --out DIR

Every example keeps its fields and gets `structure_latent` (the posterior's mean) and the digest of
the autoencoder. Beside the shards stands `latent_statistics.json`, the mean and standard deviation
of each channel. Finished shards are never rewritten, so a killed job continues; several jobs share
the work with --task_index and --task_count, the last of them declares the dataset whole.
"""

import argparse
import dataclasses
import importlib.metadata
import pathlib

from launch.console import cli
from launch.console.findings import Findings
from launch.console.flags import dry_run_flag, which_flag
from launch.console.folders import check_folder
from launch.console.progress import Progress, say
from sam3d_jax.errors import InputError

# whose versions can change a bit of a latent
PACKAGES = ("jax", "jaxlib", "flax", "numpy")


@dataclasses.dataclass(frozen=True)
class Encoding:
  """What to encode, with what, and which part of it here."""

  data: pathlib.Path
  checkpoint: str
  out: pathlib.Path
  which: str
  batch_size: int
  task_index: int
  task_count: int
  dry_run: bool

  def __post_init__(self):
    if self.out.resolve() == self.data.resolve():
      raise InputError(f"--out {self.out} is the dataset itself; give another folder")
    if self.batch_size < 1:
      raise InputError(f"--batch_size {self.batch_size}: give a positive number")


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--data", required=True, type=pathlib.Path, metavar="DIR", help="dataset to encode"
  )
  parser.add_argument(
    "--checkpoint", required=True, metavar="DIR", help="work folder of a structure VAE"
  )
  parser.add_argument(
    "--out", required=True, type=pathlib.Path, metavar="DIR", help="folder of the new dataset"
  )
  which_flag(parser)
  parser.add_argument("--batch_size", type=int, default=16, help="shapes encoded at a time")
  parser.add_argument(
    "--task_index", type=int, default=0, help="this job's number among those that share the work"
  )
  parser.add_argument("--task_count", type=int, default=1, help="how many jobs share the work")
  dry_run_flag(parser, "check dataset and checkpoint, print the plan")


def run(args: argparse.Namespace) -> None:
  """Encodes what is not encoded yet."""
  spec = Encoding(**vars(args))
  check_folder(spec.out, "--out")
  # The wall: what reads datasets and what knows JAX is imported only once there is work to do.
  from data_pipelines.build import data_card, latents
  from data_pipelines.format import records
  from sam3d_jax.inference import structure_encoder

  # the dataset, and the encoder
  share = latents.Share(spec.task_index, spec.task_count)
  found = Findings()
  with found.looking("--data"):
    records.open_dataset(spec.data)
  with found.looking("--checkpoint"):
    model = structure_encoder.from_checkpoint(
      spec.checkpoint,
      which=spec.which,
      batch_size=spec.batch_size,
      tell=say,
    )
  found.tell()

  # what its latents depend on
  identity = {
    "which": spec.which,
    "step": model.step,
    "batch_size": spec.batch_size,
    "latent": model.latent,
    "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
  }
  encoder = latents.Encoder(model, model.resolution, model.digest, identity)

  # the plan
  plan = latents.make_plan(spec.data, encoder)
  print(
    f"{spec.data}: {plan.inputs} examples in {len(plan.jobs)} shards, autoencoder "
    f"{encoder.digest[:12]} -> {spec.out}"
  )

  latents.check_claim(plan, spec.out)
  if spec.dry_run:
    return

  # this job's share of the shards
  total = sum(job.inputs for job in latents.mine(plan, share))
  done = latents.finished_examples(plan, spec.out, share)
  with Progress(total, "encoding", "examples", done=done) as progress:
    counts = latents.encode(plan, spec.out, share=share, progress=progress.update)
  if counts is None:
    left = latents.shards_left(plan, spec.out)
    print(f"{left} of {len(plan.jobs)} shards are left to other jobs")
    return
  statistics = latents.read_statistics(spec.out)
  print(f"{spec.out}: {summary(counts, statistics)}")
  card = data_card.write(spec.out)
  if card is not None:
    print(f"{card}: {data_card.REMARK}")


def summary(counts: dict[str, int], statistics: dict) -> str:
  """Examples by split, and each channel's mean and standard deviation."""
  examples = ", ".join(f"{count} {split}" for split, count in counts.items())
  channels = []
  for mean, std in zip(statistics["mean"], statistics["std"], strict=True):
    channels.append(f"{mean:.2f} +- {std:.2f}")
  return f"{examples} examples; latents {', '.join(channels)}"


if __name__ == "__main__":
  raise SystemExit(main())
