"""What a training step sends between chips, read from the compiled program: kinds and counts for
each mesh, and an upper bound of bytes.
"""

import math

import pytest

from launch.console import cli
from launch.performance import hlo
from launch.performance.compiled import without_data
from launch.trainer import lowering
from launch.trainer.setup import prepare

pytestmark = pytest.mark.multidevice


def compiled(stage: str, sizes: dict[str, int], **changes):
  """The prepared run of a small configuration on some of eight devices, and what its step sends."""
  import jax

  config = without_data(
    cli.load_config(f"configs/{stage}_geometry.py:fake"),
    **changes,
    **{f"mesh__{a}": n for a, n in sizes.items()},
  )
  setup = prepare(config, devices=jax.devices()[: math.prod(sizes.values())])
  return setup, hlo.summary(hlo.collectives(lowering.step(setup).compile().as_text()))


def trained_bytes(setup) -> int:
  return 4 * sum(math.prod(x.shape) for x in setup.abstract_state.params.values())


def test_a_copied_model_only_sums_its_gradients():
  setup, sent = compiled("pretrain", dict(data=8))
  assert set(sent) == {"all-reduce"}
  # some parameters have no gradient, metrics add a little
  assert 0.8 < sent["all-reduce"]["bytes"] / trained_bytes(setup) < 1.05


def test_a_split_model_gathers_its_parameters_and_moves_no_sample():
  _, sent = compiled("pretrain", dict(data=1, fsdp=8))
  assert "all-gather" in sent and "collective-permute" not in sent


def test_self_consistency_sends_no_sample_where_every_shard_holds_its_share():
  """A slice across shards, or a batch that does not divide, would move samples and double the work:
  2 TiB a step at full size.
  """
  setup, sent = compiled("distill", dict(data=4), batch_size=16)
  assert set(sent) == {"all-reduce"}
  # some parameters have no gradient, metrics add a little
  assert 0.8 < sent["all-reduce"]["bytes"] / trained_bytes(setup) < 1.05


def test_the_plan_warns_where_shards_hold_no_whole_number_of_consistency_rows():
  from launch.trainer import plan

  setups = (
    prepare(
      without_data(
        cli.load_config("configs/distill_geometry.py:fake"),
        batch_size=n,
        mesh__data=4,
        mesh__fsdp=2,
      )
    )
    for n in (32, 16)
  )
  assert ["is no whole number" in plan.text(s) for s in setups] == [False, True]
