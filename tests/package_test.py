"""The installed package: its commands, its files, its extras, and the locked versions."""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import tomllib

from packaging.requirements import Requirement
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


def requirements(name: str) -> list[str]:
  """The requirements that a file itself lists; of files that it includes, only their names."""
  found = []
  for line in (ROOT / name).read_text().splitlines():
    requirement, _, _ = line.partition("#")
    if requirement.strip():
      found.append(requirement.strip())
  return found


def own_requirements(name: str) -> list[str]:
  """What a requirements file adds to requirements.txt, files that it includes read."""
  own = []
  for line in requirements(name):
    included = line.removeprefix("-r ")
    if included == line:
      own.append(line)
    elif included != "requirements.txt":
      own += own_requirements(included)
  return own


def test_every_command_is_installed_under_its_name():
  launch = ROOT / "launch"
  modules = {file.stem for file in launch.glob("*.py")} - {"__init__"}
  packages = {file.parent.name for file in launch.glob("*/__main__.py")}
  scripts = PROJECT["project"]["scripts"]
  assert set(scripts) == {f"sam3d-{name}" for name in modules | packages}

  # each is `main(argv) -> exit code` of its module
  for name, entry in scripts.items():
    module, _, function = entry.partition(":")
    source = (ROOT / module.replace(".", "/")).with_suffix(".py")
    assert module.split(".")[1] == name.removeprefix("sam3d-")
    assert f"\ndef {function}(argv: list[str] | None = None) -> int:" in source.read_text()


def test_every_file_of_the_packages_is_packed():
  if not (ROOT / ".git").exists():
    pytest.skip("the files are those that git knows, and this is no checkout")
  settings = PROJECT["tool"]["setuptools"]
  include = settings["packages"]["find"]["include"]
  tops = [name for name in include if not name.endswith(".*")]
  assert set(include) == {*tops, *(f"{top}.*" for top in tops)}

  packed = set()
  for top in tops:
    for marker in (ROOT / top).rglob("__init__.py"):
      folder = marker.parent
      package = ".".join(folder.relative_to(ROOT).parts)
      patterns = settings["package-data"]["*"] + settings["package-data"].get(package, [])
      for pattern in ("*.py", *patterns):
        for file in folder.glob(pattern):
          packed.add(file.relative_to(ROOT).as_posix())

  listed = subprocess.run(
    ["git", "ls-files", *tops], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert len(packed) > 100
  assert [file for file in listed.stdout.splitlines() if file not in packed] == []


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - {"beam"}))
def test_an_extra_asks_for_what_its_requirements_file_adds(extra):
  assert sorted(EXTRAS[extra]) == sorted(own_requirements(f"requirements-{extra}.txt"))


def test_the_extra_for_beam_adds_beam_alone():
  # Its file is an environment without JAX: what it shares with requirements.txt is the same there.
  listed = requirements("requirements-beam.txt")
  assert set(EXTRAS["beam"]) == set(listed) - set(requirements("requirements.txt"))


def normalised(name: str) -> str:
  """A package's name as package indexes compare it."""
  return re.sub(r"[-_.]+", "-", name).lower()


def locked_versions() -> dict[str, str]:
  """Name of a package -> its version in the lock file."""
  locked = {}
  for line in requirements("requirements-lock.txt"):
    assert re.fullmatch(r"[\w.-]+==[\w.]+", line), f"{line}: neither address nor local version"
    name, _, version = line.partition("==")
    locked[normalised(name)] = version
  return locked


def test_the_lock_file_names_a_version_within_the_range_of_every_requirement():
  locked = locked_versions()
  for line in requirements("requirements.txt") + own_requirements("requirements-dev.txt"):
    wanted = Requirement(line)
    version = locked[normalised(wanted.name)]
    assert wanted.specifier.contains(version), f"{line}, locked at {version}"


def test_an_environment_that_is_made_from_the_lock_file_has_its_versions():
  if not os.environ.get("PIP_CONSTRAINT", "").endswith("requirements-lock.txt"):
    pytest.skip("this environment takes what the ranges allow (PIP_CONSTRAINT is not set)")
  others = []
  for name, version in locked_versions().items():
    # builds for one kind of device add a local version
    installed, _, _ = importlib.metadata.version(name).partition("+")
    if installed != version:
      others.append(f"{name} {installed}, locked at {version}")
  assert others == []
