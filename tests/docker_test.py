"""The Dockerfile, read: what it copies exists and suffices, and it installs what is promised."""

import pathlib
import re
import shlex
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HARDWARE = ("cuda", "tpu")
KNOWN = ("FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "CMD")


def instructions() -> list[tuple[str, str]]:
  """(instruction, rest), lines that go on joined, comments left out."""
  lines = []
  for line in (ROOT / "Dockerfile").read_text().splitlines():
    if line.strip() and not line.startswith("#"):
      lines.append(line)
  text = "\n".join(lines).replace("\\\n", " ")
  found = []
  for line in text.splitlines():
    name, _, rest = line.partition(" ")
    found.append((name, rest.strip()))
  return found


def only(name: str) -> list[str]:
  return [rest for instruction, rest in instructions() if instruction == name]


def copied() -> dict[str, str]:
  """Path in the checkout -> path in the image, relative to its working directory."""
  targets = {}
  for rest in only("COPY"):
    *names, target = shlex.split(rest)
    for name in names:
      place = pathlib.PurePath(target)
      targets[name] = str(place / name if target.endswith("/") else place)
  return targets


def named_requirements(file: str) -> set[str]:
  """A requirements file and those that it includes."""
  found = {file}
  for line in (ROOT / file).read_text().splitlines():
    if line.startswith("-r "):
      found |= named_requirements(line.removeprefix("-r ").strip())
  return found


def test_every_instruction_is_one_that_docker_knows_and_one_image_is_made():
  assert {name for name, _ in instructions()} <= set(KNOWN)
  assert instructions()[0][0] == "FROM"
  assert len(only("FROM")) == 1


def test_what_it_copies_exists_keeps_its_place_and_is_sent():
  sent = (ROOT / ".dockerignore").read_text().splitlines()
  for name, target in copied().items():
    assert (ROOT / name).exists(), name
    assert target == name
    pattern = "requirements*.txt" if name.startswith("requirements") else name
    assert f"!{pattern}" in sent, name


def test_every_package_and_what_it_needs_is_in_the_image():
  include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
  packages = {name for name in include if not name.endswith(".*")}
  assert packages <= set(copied())


@pytest.mark.parametrize("hardware", HARDWARE)
def test_the_requirements_of_both_kinds_of_hardware_are_there_before_they_are_installed(hardware):
  order = [name for name, _ in instructions()]
  install = next(rest for rest in only("RUN") if "pip install" in rest)
  assert f"requirements-{hardware}.txt" in install.replace("${HARDWARE}", hardware)
  needed = named_requirements(f"requirements-{hardware}.txt") | {"requirements-lock.txt"}
  before = instructions()[: order.index("RUN")]
  there = set()
  for name, rest in before:
    if name == "COPY":
      there |= set(shlex.split(rest)[:-1])
  assert needed <= there
  assert hardware in PROJECT["project"]["optional-dependencies"]


def test_the_hardware_that_is_built_without_a_word_is_one_of_them():
  (argument,) = only("ARG")
  name, _, default = argument.partition("=")
  assert name == "HARDWARE" and default in HARDWARE


def test_the_python_of_the_image_is_the_one_of_the_locked_versions():
  (base,) = only("FROM")
  version = re.fullmatch(r"python:(\d+\.\d+)-slim-\w+", base)[1]
  assert f"Python {version}," in (ROOT / "requirements-lock.txt").read_text()
  least = PROJECT["project"]["requires-python"].removeprefix(">=")
  assert tuple(map(int, version.split("."))) >= tuple(map(int, least.split(".")))


def test_the_command_that_tries_the_image_names_files_that_are_in_it():
  tried = next(rest for rest in only("RUN") if "launch." in rest)
  config = re.search(r"--config (\S+?):", tried)[1]
  assert (ROOT / config).is_file()
  assert config.split("/")[0] in copied()
  module = re.search(r"-m (\S+)", tried)[1]
  assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
