"""From nothing to a picture: data, autoencoder, Geometry model, samples and scores, all small.

    python -m launch.quickstart --workdir DIR

Runs the same commands as a large run, one after the other, each in its own process with a `:tiny` configuration. Interrupted, it
continues where it stopped; finished steps are not repeated. `--dry_run` prints the commands.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

from launch import cli
from launch.progress import duration
from launch.train import prepare_workdir
from sam3d_jax.errors import InputError, JobFailed, Preempted

FREE_BYTES_NEEDED = 1 << 30
SHOWN_LOG_LINES = 15
# XLA on CPU takes and frees its buffers every step; returning them to the kernel each time costs system
# time (32 s of a VAE run of 187 s, against 5 s with these settings of glibc).
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**28)}


@dataclasses.dataclass(frozen=True)
class Step:
  """One command of the chain. `name` is also the name of its log file."""

  name: str
  says: str  # what it does, for the screen
  command: tuple[str, ...]


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--workdir", default="quickstart_run", help="folder for everything that is made (about 200 MB)")
  parser.add_argument("--seed", type=int, default=0, help="of the whole run: the same seed gives the same figures")
  parser.add_argument("--dry_run", action="store_true", help="print the commands and stop")


def chain(work: pathlib.Path, seed: int) -> list[Step]:
  """The commands, in order."""
  data, latents, vae, geometry = work / "data" / "iso_3do", work / "data" / "iso_3do_latents", work / "vae", work / "geometry"
  common = (f"--config.seed={seed}",)
  training = (*common, f"--config.compile_cache={work / 'compile_cache'}")
  sample = ("launch.sample", "--checkpoint", str(geometry), "--decoder", str(vae), "--data", str(latents), "--split", "test",
            "--seed", str(seed))
  return [
      Step("build_data", "make objects, render and voxelise them",
           ("launch.build_data", "--config", "configs/data/iso_3do.py:tiny", f"--config.out={data}", *common)),
      Step("validate_data", "check every record", ("launch.validate_data", "--data", str(data), "--html", str(work / "data.html"))),
      Step("train_vae", "train the structure autoencoder",
           ("launch.train_vae", "--config", "configs/vae_structure.py:tiny", "--workdir", str(vae),
            f"--config.data.mixture.iso_3do.path={data}", *training)),
      Step("encode_latents", "encode every shape",
           ("launch.encode_latents", "--data", str(data), "--checkpoint", str(vae), "--out", str(latents))),
      Step("pretrain", "train the Geometry model",
           ("launch.pretrain", "--config", "configs/pretrain_geometry.py:tiny", "--workdir", str(geometry),
            f"--config.data.mixture.iso_3do.path={latents}", *training)),
      Step("sample", "reconstruct held-out objects", (*sample, "--out", str(work / "samples"))),
      Step("sample_shuffled", "the same from the wrong images, as a baseline",
           (*sample, "--shuffle_images", "--out", str(work / "samples_shuffled"))),
      Step("evaluate", "score",
           ("launch.evaluate", "--samples", str(work / "samples"), "--shuffled", str(work / "samples_shuffled"), "--data", str(latents),
            "--split", "test", "--out", str(work))),
  ]


def run(args: argparse.Namespace) -> int:
  """Runs what is not done yet and prints the figures."""
  work = prepare_workdir(args.workdir)
  steps = chain(work, args.seed)
  if args.dry_run:
    print("\n".join(f"python -m {shlex.join(step.command)}" for step in steps))
    return 0
  free = shutil.disk_usage(work).free
  if free < FREE_BYTES_NEEDED:
    raise InputError(f"--workdir {work}: {free >> 20} MB are free on that disk, {FREE_BYTES_NEEDED >> 20} MB are needed; free some or "
                     "give a folder on another disk (make quickstart WORK=DIR)")
  (work / "logs").mkdir(exist_ok=True)
  stale = False  # a step that ran makes every later one stale
  for index, step in enumerate(steps):
    record = work / "logs" / f"{step.name}.json"
    if not stale and finished(record, step):
      continue
    stale = True
    print(f"[{index + 1}/{len(steps)}] {step.name}: {step.says}", file=sys.stderr, flush=True)
    execute(step, work / "logs" / f"{step.name}.log", record)
  report(work, sum(json.loads((work / "logs" / f"{s.name}.json").read_text())["seconds"] for s in steps))
  return 0


def finished(record: pathlib.Path, step: Step) -> bool:
  """Whether the step has run to its end with this very command."""
  if not record.exists():
    return False
  saved = json.loads(record.read_text())
  return saved["done"] and saved["command"] == list(step.command)


def execute(step: Step, log: pathlib.Path, record: pathlib.Path) -> None:
  """Runs one command; its standard output goes to the log, its progress to the screen. Ctrl-C reaches it and is waited for."""
  saved = json.loads(record.read_text()) if record.exists() else {}
  before = saved["seconds"] if saved.get("command") == list(step.command) else 0.0
  start = time.monotonic()
  env = {**os.environ, **KEEP_FREED_MEMORY, "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"), "PYTHONUNBUFFERED": "1"}
  with log.open("w") as out:
    child = subprocess.Popen([sys.executable, "-m", *step.command], stdout=out, env=env, cwd=pathlib.Path(__file__).parents[1])
    code = wait(child)
  seconds = before + time.monotonic() - start
  partial = record.with_suffix(".partial")
  partial.write_text(json.dumps({"done": code == 0, "command": list(step.command), "seconds": seconds}))
  partial.replace(record)
  if code == cli.EXIT_RETRY or code == -signal.SIGINT:
    raise Preempted(f"during {step.name}, what it had is saved")
  if code != 0:
    print("\n".join(log.read_text().splitlines()[-SHOWN_LOG_LINES:]), file=sys.stderr)
    raise JobFailed(f"{step.name} ended with code {code}; its output is in {log}. The command was:\n  python -m {shlex.join(step.command)}")


def wait(child: subprocess.Popen) -> int:
  """The child's exit code. A signal to this process is passed on (Ctrl-C in a terminal reaches the child by itself)."""
  previous = signal.signal(signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM))
  try:
    while True:
      try:
        return child.wait()
      except KeyboardInterrupt:
        continue  # the child got it too; it saves and exits
  finally:
    signal.signal(signal.SIGTERM, previous)


def report(work: pathlib.Path, seconds: float) -> None:
  """Adds the time to metrics.json and prints what there is to see and to do next."""
  path = work / "metrics.json"
  metrics = {**json.loads(path.read_text()), "seconds": round(seconds, 1)}
  path.write_text(json.dumps(metrics, indent=2) + "\n")
  score, constant, shuffled = (metrics[k] for k in ("voxel_iou", "voxel_iou_constant", "voxel_iou_shuffled"))
  print(f"""
held-out voxel IoU {score:.3f} = {score / constant:.2f} x the best constant shape ({constant:.3f}), {score / shuffled:.2f} x samples from \
shuffled images ({shuffled:.3f})
time {duration(seconds)}

look at    {work / 'preview.png'}         input, mask, truth and sample from two views
           {work / 'samples'}/*.glb       the meshes, for any viewer
           {work / 'data.html'}           the training data
           tensorboard --logdir {work}
try next   python -m launch.sample --checkpoint {work / 'geometry'} --decoder {work / 'vae'} --image PHOTO --mask MASK --out DIR
           python -m launch.pretrain --config configs/pretrain_geometry.py:tiny --config.steps=20000 ...   (longer is better)
           docs/quickstart.md walks through what happened and how the same commands scale""")


if __name__ == "__main__":
  cli.main(run, description=__doc__, flags=flags, config="none")
