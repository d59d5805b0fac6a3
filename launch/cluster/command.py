"""Renders what starts a training job on a cluster, from one small file.

    python -m launch.cluster --spec job.yaml --out job/

Every section of the specification (slurm, kubernetes, xpk, tpu_vm) becomes one file in the output
folder: `slurm.sh`, `jobset.yaml`, `xpk.sh`, `tpu_vm.sh`; docs/operations.md has an example with
every key. Before anything is written, hosts and chips are compared with device type, topology, mesh
and batch, and every value of the configuration is checked. All of them start the job again after
exit code 75, and never after exit code 2.
"""

import argparse
from collections.abc import Callable
import dataclasses
import os
import pathlib

from launch.cluster import jobset, slurm, tpu_vm, xpk
from launch.cluster.spec import Spec, load
from launch.console import cli
from launch.console.flags import dry_run_flag
from launch.console.folders import check_folder
from sam3d_jax.files import atomic


@dataclasses.dataclass(frozen=True)
class Renderer:
  """What becomes of a section: the name of its file, its text, and the command that submits it."""

  file: str
  render: Callable[[Spec], str]
  submit: str


# section of a specification -> its renderer
RENDERERS = {
  "slurm": Renderer("slurm.sh", slurm.render, "sbatch {}"),
  "kubernetes": Renderer("jobset.yaml", jobset.render, "kubectl create -f {}"),
  "xpk": Renderer("xpk.sh", xpk.render, "bash {}"),
  "tpu_vm": Renderer("tpu_vm.sh", tpu_vm.render, "bash {}"),
}


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--spec", required=True, metavar="FILE", help="what to run, and where (YAML)")
  parser.add_argument("--out", required=True, metavar="DIR", help="folder for what is rendered")
  dry_run_flag(parser, "check the specification, print what would be written")


def run(args: argparse.Namespace) -> None:
  """Checks the specification and the configuration that it names, then writes every file."""
  out = check_folder(args.out, "--out")
  spec = load(args.spec)
  # The wall: it needs JAX, which takes seconds that no help and no misspelt key should cost.
  from launch.cluster import fit

  fit.check(spec, args.spec)
  rendered = render_all(spec)
  # nothing is written unless all of it can be rendered
  if args.dry_run:
    for name in rendered:
      print(f"would write {out / name}")
    return
  out.mkdir(parents=True, exist_ok=True)
  for name, (text, submit) in rendered.items():
    file = out / name
    write_private(file, text)
    print(f"wrote {file}; start it with: {submit.format(file)}")


def write_private(file: pathlib.Path, text: str) -> None:
  """Writes a file that its owner alone may read: the environment of a job holds keys."""
  with atomic.write(file) as temporary:
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
      opened.write(text)


def render_all(spec: Spec) -> dict[str, tuple[str, str]]:
  """File name -> (text, command that submits it) for every section of the specification."""
  rendered = {}
  for section, renderer in RENDERERS.items():
    if getattr(spec, section) is not None:
      rendered[renderer.file] = (renderer.render(spec), renderer.submit)
  return rendered
