"""What the batches of a run depend on beside its configuration: the contents of its datasets, and
the code and packages that make rows of them.

Hosts that differ in any of it would train on batches that no single host could make; a run that
goes on with other data is another experiment. So it is compared between hosts at every start, and
with what the run began with when it is resumed.
"""

from collections.abc import Mapping
import hashlib
import importlib.metadata
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.format import records
from launch.console.progress import say
from sam3d_jax.errors import ConfigError, InputError
from sam3d_jax.training import agreement

ROOT = pathlib.Path(__file__).parents[2]
# What a row is computed by, from the record to the batch: files, and folders with all in them.
CODE = (
  "data_pipelines/format/schema.py",
  "data_pipelines/read",
  "sam3d_jax/geometry",
  "sam3d_jax/files/images.py",
  "sam3d_jax/batch.py",
  "sam3d_jax/content_keys.py",
)
PACKAGES = ("numpy", "pillow", "grain", "array-record", "tensorflow-datasets")
SHOWN_FILES = 4

Identity = dict[str, dict[str, Any]]  # contents by dataset, code by file, version by package


def of(config: ConfigDict) -> Identity:
  """What a run of this configuration reads, here and now. Raises DatasetError."""
  contents = {}
  if config.data.kind == "shards":
    for name, entry in config.data.mixture.items():
      # Sources of weight 0 are not read.
      if entry.weight:
        contents[name] = records.dataset_contents(entry.path)
  packages = {package: importlib.metadata.version(package) for package in PACKAGES}
  return {"contents": contents, "code": code(), "packages": packages}


def code() -> dict[str, str]:
  """Digest of every file of CODE, in which comments and blank lines do not count."""
  found = {}
  for name in CODE:
    place = ROOT / name
    files = sorted(place.glob("*.py")) if place.is_dir() else [place]
    for file in files:
      kept = []
      for line in file.read_text().splitlines():
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
          kept.append(line.rstrip())
      digest = hashlib.sha256("\n".join(kept).encode()).hexdigest()
      found[file.relative_to(ROOT).as_posix()] = digest[:16]
  return found


def check_same_everywhere(identity: Identity) -> None:
  """Raises InputError in every process, naming a host and what it has, unless all have the same."""
  # Each finds the same difference, so all of them stop with the same words.
  texts = agreement.exchange(json.dumps(identity, sort_keys=True))
  answers = [json.loads(text) for text in texts]
  first = answers[0]
  for host, other in enumerate(answers):
    # The datasets: a path may lead elsewhere on another machine.
    for name in sorted(first["contents"]):
      here, there = first["contents"][name], other["contents"].get(name)
      if here != there:
        raise InputError(
          f"host {host} reads another data.mixture.{name} than host 0: {described(there)} there, "
          f"{described(here)} on host 0. Give all of them one folder on a disk that they share, or "
          "copies of one build"
        )
    # What makes batches of them.
    files = changed(first["code"], other["code"])
    if files:
      raise InputError(
        f"host {host} makes batches with other code than host 0 ({listed(files)}): install the "
        "same version on all of them"
      )
    packages = changed(first["packages"], other["packages"])
    if packages:
      told = []
      for package in packages:
        there, here = other["packages"].get(package), first["packages"].get(package)
        told.append(f"{package} {there} there, {here} on host 0")
      raise InputError(
        f"host {host} makes batches with other packages than host 0 ({'; '.join(told)}): install "
        "the same versions on all of them"
      )


def check_same_data(
  lineage: Mapping[str, Any], step: int, now: Identity, config: ConfigDict, workdir: pathlib.Path
) -> list[str]:
  """The datasets that hold something else than those that the run was trained on up to `step`.

  lineage: recorded with the checkpoint of that step. Raises ConfigError naming the first of them,
  what it held and what it holds, unless `data.accept_changes` says that it is meant.
  """
  others = []
  for name, held in recorded(lineage)["contents"].items():
    holds = now["contents"].get(name)
    if holds is None or all(holds.get(key) == value for key, value in held.items()):
      continue
    others.append(name)
    if not config.data.get("accept_changes", False):
      path = config.data.mixture[name].path
      raise ConfigError(
        f"{workdir} was trained on {described(held)} as data.mixture.{name} up to step {step}, now "
        f"{path} holds {described(holds)}: give the folder that it was trained on "
        f"(--config.data.mixture.{name}.path=DIR), start a new stage with another --workdir and "
        f"--config.init_from={workdir}, or go on with other data on purpose with "
        "--config.data.accept_changes=True"
      )
  return others


def recorded(lineage: Mapping[str, Any]) -> Identity:
  """What a run read, as its checkpoint says."""
  if "reads" in lineage:
    return lineage["reads"]
  # Written by code that knew only how many records there were.
  contents = {}
  for name, known in lineage.get("datasets", {}).items():
    contents[name] = {"records": known["records"]}
  return {"contents": contents, "code": {}, "packages": {}}


def carried_on(
  lineage: Mapping[str, Any], step: int, now: Identity, config: ConfigDict, workdir: pathlib.Path
) -> dict[str, Any]:
  """The lineage that a resumed run goes on with: what it reads now, and what has changed since.

  Other code is said. Raises as `check_same_data`.
  """
  # What has changed.
  others = check_same_data(lineage, step, now, config, workdir)
  before = recorded(lineage)
  files = []
  if before["code"]:
    files = changed(before["code"], now["code"])
  # Said: whoever pulled new code into the checkout may not have meant this run.
  if files:
    commit = lineage.get("commit") or "of then"
    say(
      f"note: the code that makes batches is not that of step {step} ({listed(files)}): batches "
      "from here on may differ from those of an unbroken run; for the same ones go on with commit "
      f"{commit}"
    )
  if others:
    say(f"note: from step {step} on other data are read than before: {', '.join(others)}")

  # And kept with every checkpoint from here on.
  carried = {**lineage, "reads": now}
  if others or files:
    change = {"step": step, "datasets": others, "code": files, "before": before}
    carried["changes"] = [*lineage.get("changes", ()), change]
  return carried


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """The names under which two mappings hold something else, or only one of them holds anything."""
  return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def listed(files: list[str]) -> str:
  """The first few of them."""
  shown = files[:SHOWN_FILES]
  more = len(files) - len(shown)
  if more:
    shown.append(f"and {more} more")
  return ", ".join(shown)


def described(contents: Mapping[str, Any] | None) -> str:
  """A dataset in words: how many records each split has, and a short name of what is in them."""
  if contents is None:
    return "nothing"
  counts = ", ".join(f"{count} {split}" for split, count in contents["records"].items())
  digest = contents.get("digest")
  name = f", contents {digest[:12]}" if digest else ""
  return f"a dataset of {counts} records{name}"
