"""The loop's own numbers."""

import types

import jax
import pytest

from sam3d_jax.training import hardware, loop

FLOPS = 2e6  # of a sample
PEAK = 1e9


def make_job():
  mesh = jax.make_mesh((1,), ("data",))
  return types.SimpleNamespace(mesh=mesh, flops_per_sample=FLOPS)


def know_the_chip(monkeypatch, job) -> None:
  kind = job.mesh.devices.flat[0].device_kind
  chip = hardware.Chip(
    peak=PEAK,
    memory=1e9,
    bandwidth=1e9,
    link=1e9,
    network=1e9,
  )
  monkeypatch.setitem(hardware.CHIPS, kind, chip)


def test_losses_and_scores_of_an_evaluation_are_told_the_loss_first():
  scalars = {
    "eval/viou": 0.25,
    "eval/loss": 3.14159,
    "eval/flow_time/0.1": 9.0,
    "data/rows": 3.0,
  }
  result = types.SimpleNamespace(step=200, scalars=scalars, picture=None)
  written, told = [], []
  writers = types.SimpleNamespace(enabled=True, scalars=lambda *row: written.append(row))
  job = types.SimpleNamespace(tell=told.append)

  loop.record(job, writers, [result])
  assert told == ["step 200: eval/loss 3.142  viou 0.25"]
  assert written == [(200, scalars)]

  # every host has the results, one of them says so
  writers.enabled = False
  loop.record(job, writers, [result])
  assert len(told) == 1


def test_speed_is_not_reported_against_a_peak_that_is_not_known(monkeypatch):
  job = make_job()
  # Tests may run on an accelerator.
  kind = job.mesh.devices.flat[0].device_kind
  monkeypatch.delitem(hardware.CHIPS, kind, raising=False)
  assert loop.speeds(job, 30.0) == {
    "time/samples_per_second": 30.0,
    "time/samples_per_second_per_chip": 30.0,
  }


def test_speed_is_reported_against_the_peak_of_a_chip(monkeypatch):
  job = make_job()
  know_the_chip(monkeypatch, job)
  utilisation = loop.speeds(job, 30.0)["time/mfu"]
  assert utilisation == pytest.approx(30.0 * FLOPS / PEAK)


def test_speed_is_shared_by_the_chips(monkeypatch):
  job = make_job()
  know_the_chip(monkeypatch, job)
  job.mesh = types.SimpleNamespace(size=4, devices=job.mesh.devices)
  rates = loop.speeds(job, 30.0)
  assert rates["time/samples_per_second_per_chip"] == 30.0 / 4
  assert rates["time/mfu"] == pytest.approx(30.0 * FLOPS / PEAK / 4)
