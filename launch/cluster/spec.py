"""The specification of a job: one YAML file, checked key by key before anything is rendered."""

from collections.abc import Iterator, Mapping
import dataclasses
import difflib
import pathlib
import re
import shlex
import types
import typing
from typing import Any

import yaml

from launch.cluster import flags
from launch.console import cli
from launch.sweeps.space import COMMANDS, text_of
from sam3d_jax.errors import ConfigError

NAME = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"
BREAK = re.compile(r"[\n\r\v\f\x00\x85\u2028\u2029]")  # of a line, or of a command
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"  # of the environment


@dataclasses.dataclass(frozen=True)
class Slurm:
  """`slurm.sh`, for sbatch."""

  time: str  # limit of one start, as sbatch takes it: 24:00:00
  partition: str = ""
  account: str = ""
  # shell lines that make `python` the right one: module load, source .venv/bin/activate
  setup: str = ""
  options: tuple[str, ...] = ()  # further options of sbatch: --qos=high


@dataclasses.dataclass(frozen=True)
class Kubernetes:
  """`jobset.yaml`, for any cluster with the JobSet controller."""

  image: str  # container with this code and its requirements; its working directory is the checkout
  claim: str  # persistent volume claim (ReadWriteMany) that holds data and work folders
  mount: str = "/data"  # where it appears in the container
  namespace: str = "default"
  queue: str = ""  # of Kueue
  # on GKE the accelerator and its topology
  node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Xpk:
  """`xpk.sh`, for TPUs of GKE clusters that XPK made."""

  cluster: str
  project: str
  zone: str
  device_type: str  # v5p-128
  image: str  # as kubernetes.image


@dataclasses.dataclass(frozen=True)
class TpuVm:
  """`tpu_vm.sh`, which starts one process on every machine of a TPU VM by ssh and stays until they
  are done.
  """

  tpu: str  # name of the TPU VM
  project: str
  zone: str
  folder: str  # the checkout on every machine


@dataclasses.dataclass(frozen=True)
class Spec:
  """What to run, on how much, and where."""

  name: str  # of the job: lower-case letters, digits, dashes
  command: str  # launch.<command>: pretrain, sft, dpo, distill, train_vae
  config: str  # FILE[:VARIANT]
  workdir: str  # absolute, on a disk that all machines share
  platform: str  # bundle of flags: v5e, v5p, v6e, a100, h100, h200, cpu
  hosts: int = 1  # machines; of one slice where there are several
  chips: int = 1  # accelerators of a machine
  slices: int = 1  # TPU slices
  retries: int = 10  # starts after failures other than bad input
  grace_seconds: int = 300  # between being told to stop and being killed
  python: str = "python"  # interpreter
  # configuration key -> value
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # environment beyond the platform's
  env: Mapping[str, str] = dataclasses.field(default_factory=dict)
  slurm: Slurm | None = None
  kubernetes: Kubernetes | None = None
  xpk: Xpk | None = None
  tpu_vm: TpuVm | None = None

  @property
  def kind(self) -> str:
    return flags.kind(self.platform)

  @property
  def environment(self) -> dict[str, str]:
    return flags.environment(self.platform, self.env)

  @property
  def override_arguments(self) -> list[str]:
    return [f"--config.{key}={text_of(value)}" for key, value in self.overrides.items()]

  @property
  def argv(self) -> list[str]:
    """The training command, the same on every machine and at every start."""
    return [
      self.python,
      "-m",
      f"launch.{self.command}",
      f"--config={self.config}",
      f"--workdir={self.workdir}",
      *self.override_arguments,
    ]

  @property
  def shell_command(self) -> str:
    return shlex.join(self.argv)


SECTIONS = ("slurm", "kubernetes", "xpk", "tpu_vm")


def load(path: str, flag: str = "--spec") -> Spec:
  """Reads and checks a specification and loads the configuration that it names. Raises ConfigError
  with key, value and fix. Whether its parts go together is for `launch.cluster.fit`. flag: under
  which it was given, for errors.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise ConfigError(f"{flag} {path}: no such file")
  try:
    values = yaml.safe_load(file.read_text())
  except (yaml.YAMLError, UnicodeDecodeError) as error:
    raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
  # What the file says, then what the configuration that it names says.
  spec = _typed(Spec, values, path, "")
  _check(spec, path)
  cli.load_config(spec.config, spec.override_arguments, flag=f"{path}: config")
  return spec


def _typed(cls, values: Any, path: str, prefix: str):
  """The dataclass made of a mapping, its keys and types checked, sections likewise."""
  if not isinstance(values, dict):
    what = prefix.rstrip(".") or "the file"
    raise ConfigError(f"{path}: {what} = {values!r} is not a mapping of keys to values")

  # every key is a field, and every field without a default is there
  fields = {field.name: field for field in dataclasses.fields(cls)}
  for key in values:
    if key not in fields:
      near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
      remedy = f"the nearest is '{prefix}{near[0]}'" if near else f"known are {', '.join(fields)}"
      raise ConfigError(f"{path} has an unknown key '{prefix}{key}'; {remedy}")
  needed = [name for name, field in fields.items() if _is_needed(field)]
  missing = [f"{prefix}{name}" for name in needed if name not in values]
  if missing:
    raise ConfigError(f"{path} lacks {', '.join(missing)}")

  hints = typing.get_type_hints(cls)
  typed = {}
  for key, value in values.items():
    typed[key] = _value(hints[key], value, path, prefix + key)
  return cls(**typed)


def _is_needed(field: dataclasses.Field) -> bool:
  """Whether a field has no default."""
  no_value = field.default is dataclasses.MISSING
  return no_value and field.default_factory is dataclasses.MISSING


def _value(hint, value: Any, path: str, key: str):
  """A value of the declared type. Numbers and true/false may stand for text where YAML makes them
  of it (env: {NCCL_IB: 1}).
  """
  # Section | None
  if isinstance(hint, types.UnionType):
    section, *_ = typing.get_args(hint)
    return _typed(section, value, path, f"{key}.")

  origin = typing.get_origin(hint)
  if origin is tuple:
    wanted, said = list, "a list"
  elif origin is Mapping:
    wanted, said = dict, "a mapping"
  else:
    wanted, said = hint, "a number" if hint is int else "text"
  # to Python true is a number
  if not isinstance(value, wanted) or isinstance(value, bool):
    remedy = "; put it in quotes" if hint is str else ""
    raise ConfigError(f"{path}: {key} = {value!r} is not {said}{remedy}")

  # what stands in a list or mapping of texts becomes text
  if origin is tuple:
    return tuple(str(item) for item in value)
  if origin is Mapping and typing.get_args(hint)[1] is str:
    return {str(name): str(item) for name, item in value.items()}
  return value


def _texts(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
  """(dotted key, text) of every text of a specification."""
  if isinstance(tree, str):
    yield prefix.rstrip("."), tree
  elif isinstance(tree, Mapping):
    for key, value in tree.items():
      yield from _texts(value, f"{prefix}{key}.")
  elif isinstance(tree, list | tuple):
    for value in tree:
      yield from _texts(value, prefix)


def _check(spec: Spec, path: str) -> None:
  """What one key demands of another."""

  def refuse(key: str, why: str):
    raise ConfigError(f"{path}: {key} = {getattr(spec, key)!r} {why}")

  # keys that are wrong by themselves
  if not re.fullmatch(NAME, spec.name):
    refuse(
      "name", "must be at most 40 lower-case letters, digits and dashes, beginning with a letter"
    )
  if spec.command not in COMMANDS:
    refuse("command", f"is not one of {', '.join(COMMANDS)}")
  if spec.platform not in flags.PLATFORMS:
    refuse("platform", f"is not one of {', '.join(flags.PLATFORMS)}")
  if not spec.workdir.startswith("/"):
    refuse("workdir", "must be an absolute path on a disk that all machines share")
  for key in ("hosts", "chips", "slices", "grace_seconds"):
    if getattr(spec, key) < 1:
      refuse(key, "must be at least 1")
  if spec.retries < 0:
    refuse("retries", "must be at least 0")

  # every text stands in a line of its own, but for lines of the shell
  for key, text in _texts(dataclasses.asdict(spec)):
    if key != "slurm.setup" and not key.startswith("env.") and BREAK.search(text):
      raise ConfigError(f"{path}: {key} = {text!r} has a line break in it: write it in one line")

  # names stand in scripts as they are
  for name in spec.env:
    if not re.fullmatch(VARIABLE, name):
      raise ConfigError(
        f"{path}: env has {name!r}, which is no name of a variable: write letters, digits and "
        "underscores"
      )

  # a platform has what it is asked for, and somewhere to run
  if spec.slices > 1 and spec.kind != "tpu":
    refuse(
      "slices",
      f"but only TPUs come in slices, and platform is {spec.platform}: give all machines as hosts",
    )
  if all(getattr(spec, section) is None for section in SECTIONS):
    raise ConfigError(
      f"{path} says nowhere to run: add at least one of the sections {', '.join(SECTIONS)}"
    )

  # every section suits the platform
  if spec.slurm and spec.kind == "tpu":
    refuse("platform", "is a TPU, which SLURM does not run: remove the section slurm")
  for section in ("xpk", "tpu_vm"):
    if getattr(spec, section) and spec.kind != "tpu":
      refuse("platform", f"is no TPU: remove the section {section}")
  if spec.tpu_vm and spec.slices > 1:
    refuse("slices", "but one TPU VM is one slice: use kubernetes or xpk for several")
  if spec.kubernetes:
    mount = spec.kubernetes.mount
    if not f"{spec.workdir}/".startswith(f"{mount.rstrip('/')}/"):
      refuse(
        "workdir",
        f"is not below kubernetes.mount = {mount!r}, so it would be lost with the pod",
      )
