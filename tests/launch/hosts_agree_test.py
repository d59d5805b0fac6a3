"""Two real processes restore together: what one of them alone meets, both act upon alike."""

import json
import os
import re
import subprocess
import sys

import pytest

from sam3d_jax.training.checkpointer import Checkpointer
from tests.support import another_writer, jobs, tiny_checkpoints


@pytest.fixture(scope="module")
def came(tmp_path_factory):
  """What came of every scenario, by process."""
  folder = tmp_path_factory.mktemp("hosts")
  for name, scale in (("run", 1.0), ("other", 2.0)):
    checkpointer = Checkpointer(folder / name)
    for step in (5, 6):
      state = tiny_checkpoints.make_state(step * scale)
      checkpointer.save(step, state, tiny_checkpoints.META)
    checkpointer.close()

  env = {
    **os.environ,
    "PYTHONPATH": str(another_writer.ROOT),
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
  }
  coordinator = f"localhost:{jobs.free_port()}"
  processes = []
  with another_writer.holding(folder / "held"):
    for index in range(2):
      argv = [sys.executable, "-m", "tests.support.two_hosts", coordinator, str(index), str(folder)]
      process = subprocess.Popen(
        argv,
        cwd=another_writer.ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      processes.append(process)
    said = [process.communicate(timeout=300) for process in processes]
  for process, (_, errors) in zip(processes, said, strict=True):
    assert process.returncode == 0, errors
  return [json.loads(output.splitlines()[-1]) for output, _ in said]


def test_hosts_go_on_from_one_step(came):
  for host in came:
    assert host["fine"] == "step 6, bad []"
    # one cannot read step 6: none reads it
    assert host["damaged there"] == "step 5, bad [6]"


@pytest.mark.parametrize(
  "scenario, words",
  [
    ("disk fails there", "Input/output error"),
    (
      "not seen there",
      "host 1 cannot go on, so none does: .* no checkpoint of step 6; it has 5",
    ),
    ("another folder there", r"host 1 reads step 6 \(digest \w+\), host 0 reads step 6 \(digest"),
    ("folder in use", "in use by launch.other"),
  ],
)
def test_what_one_host_cannot_do_ends_all_of_them_with_words(came, scenario, words):
  for host in came:
    assert re.search(words, host[scenario]), host[scenario]


def test_one_lock_is_taken_for_all_hosts(came):
  assert [host["folder free"] for host in came] == ["taken"] * 2


def test_hosts_that_read_other_data_name_both(came):
  words = "host 1 reads another data.mixture.iso than host 0: a dataset of 23 train records there"
  for host in came:
    assert words in host["other data there"]
