"""Several real processes that train together (CPU devices, Gloo), and jobs that are killed: what is
saved, resumed and refused.
"""

import argparse
import os
import signal

import numpy as np
import pytest

from launch.console import cli
from launch.trainer import command, hosts
from launch.trainer.setup import make_loader
from sam3d_jax.errors import ConfigError
from sam3d_jax.models import registry
from sam3d_jax.training import checkpoint_steps
from sam3d_jax.training.step import fingerprint
from tests import chaos
from tests.support import jobs

# 4 is what a long run of these tests takes (docs/operations.md)
HOSTS = int(os.environ.get("SAM3D_TEST_HOSTS", "2"))
ENDLESS = ("--config.steps=100000", "--config.checkpoint.every=100000", "--config.eval.every=0")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
  """A small structure VAE on shards. Every process that is started here finds its programs in the
  session's cache.
  """
  data = chaos.make_dataset(tmp_path_factory.mktemp("hosts") / "data")
  small = [
    "--config.model.res_blocks=1",
    "--config.model.middle_blocks=1",
    "--config.checkpoint.every=4",
    # not a function of the number of steps, which differs between the runs compared here
    "--config.optim.schedule=constant",
  ]
  cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
  return [*chaos.overrides(data, cache, channels=(4, 8)), *small]


@pytest.fixture(scope="module")
def unbroken(settings, tmp_path_factory):
  """A run on one process that nothing interrupts."""
  folder = tmp_path_factory.mktemp("hosts") / "unbroken"
  with jobs.Job(folder, settings) as job:
    assert job.wait() == [0], job.output()
  return folder


def expected_fingerprints(settings, steps: int) -> dict[int, float]:
  """Step -> fingerprint of the examples that it trains on, from a reader on one host that no
  training has touched.
  """
  config = cli.load_config("configs/vae_structure.py:fake", settings)
  model_config = registry.typed_config(config.model)
  batches = make_loader(config, model_config, config.data.split).iterate(0)
  found = {}
  for step in range(1, steps + 1):
    batch = next(batches)
    found[step] = float(fingerprint(batch.key))
  batches.close()
  return found


def test_all_hosts_stop_when_one_is_told_to_and_half_of_them_go_on_with_the_same_samples_and_losses(
  settings, unbroken, tmp_path
):
  # One host is told to stop.
  workdir = tmp_path / "run"
  with jobs.Job(workdir, [*settings, *ENDLESS], hosts=HOSTS) as job:
    assert job.until(lambda: jobs.trained_to(workdir) >= 2), job.output()
    job.signal(signal.SIGTERM, host=HOSTS - 1)
    assert job.wait() == [cli.EXIT_RETRY] * HOSTS, job.output()
    (saved,) = checkpoint_steps.steps(workdir)
    *others, told = [log.read_text() for log in job.logs]
  for log in others:
    assert f"another host was told to stop, saved at step {saved} of" in log
  assert f"SIGTERM, saved at step {saved} of" in told

  # Half of them go on; the last step is evaluated too.
  half = HOSTS // 2
  last = saved + 4
  end = (f"--config.steps={last}", f"--config.eval.every={last}")
  with jobs.Job(workdir, [*settings, *ENDLESS, *end], hosts=half) as job:
    assert job.wait() == [0] * half, job.output()
    assert f"resuming {workdir} at step {saved}" in job.output()
  begun = [process[0]["hosts"] for process in jobs.ledger_rows(workdir)]
  assert begun == [HOSTS, half]

  # The samples of every step, ...
  rows = jobs.science(workdir)
  fingerprints = {step: row["data/fingerprint"] for step, row in rows.items()}
  assert fingerprints == expected_fingerprints(settings, last)

  # ... and the losses.
  alone = jobs.science(unbroken)
  for step in sorted(set(rows) & set(alone)):
    loss, expected = rows[step]["loss"], alone[step]["loss"]
    np.testing.assert_allclose(loss, expected, rtol=1e-5, err_msg=f"step {step}")
  assert list(jobs.science(workdir, "eval/loss")) == [last]


def test_hosts_with_different_configurations_all_refuse_to_start_and_name_host_and_key(
  settings, tmp_path
):
  other = {1: ["--config.optim.lr=0.5"]}
  with jobs.Job(tmp_path / "run", settings, hosts=2, of_host=other) as job:
    assert job.wait() == [cli.EXIT_BAD_INPUT] * 2, job.output()
    for log in job.logs:
      assert "host 1 was started with optim.lr = 0.5, host 0 with" in log.read_text()


def test_a_job_killed_in_a_commit_and_in_a_step_ends_bit_for_bit_where_an_unbroken_one_does(
  settings, unbroken, tmp_path
):
  strikes = [
    chaos.Strike("kill", "commit", 4, 0.0),
    chaos.Strike("kill", "step", 6, 0.0),
  ]
  # Asserts state, metrics, exit codes and ledger.
  record = chaos.one_run(tmp_path / "run", strikes, lambda workers: settings, unbroken)
  first = record["strikes"][0]
  assert first["exit"] == -signal.SIGKILL
  assert record["goodput"]["step"] == chaos.STEPS


def place(argv: list[str], env: dict[str, str]):
  parser = argparse.ArgumentParser()
  command.hosts_flags(parser)
  args = parser.parse_args(argv)
  return hosts.explicit(command.hosts_spec(args), env)


def test_a_process_finds_its_place_by_flag_before_environment():
  env = {
    "JAX_COORDINATOR_ADDRESS": "a:1",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
  }
  assert place([], {}) is None
  assert place([], env) == ("a:1", 4, 3)
  assert place(["--process_id=0"], env) == ("a:1", 4, 0)


@pytest.mark.parametrize(
  "argv, words",
  [
    (["--coordinator=a:1", "--process_id=0"], r"--num_processes \(or JAX_NUM_PROCESSES\) missing"),
    (
      ["--coordinator=a", "--num_processes=2", "--process_id=0"],
      "coordinator = 'a' is not of the form HOST:PORT",
    ),
    (
      ["--coordinator=a:1", "--num_processes=two", "--process_id=0"],
      "num_processes = 'two' is not a number",
    ),
    (
      ["--coordinator=a:1", "--num_processes=2", "--process_id=2"],
      "process_id = 2 is not one of the 2 processes",
    ),
  ],
)
def test_half_a_place_or_a_wrong_one_is_refused_by_name(argv, words):
  with pytest.raises(ConfigError, match=words):
    place(argv, {})


def test_the_coordinator_listens_at_the_address_that_was_given_for_it():
  assert hosts.bind_address("10.0.0.1:8476", {}) == "10.0.0.1:8476"
  assert hosts.bind_address("a:1", {"JAX_COORDINATOR_BIND_ADDRESS": "[::]:1"}) == "[::]:1"
  assert hosts.bind_address(None, {}) is None
