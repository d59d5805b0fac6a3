"""Every stage of the ladder at its smallest: starts from the stage before, is killed, resumes,
evaluates and exports.
"""

import csv
import functools
import os
import re
import signal
from typing import NamedTuple

from flax import nnx
import jax
import numpy as np
import pytest

from launch import export_torch, inspect
from launch.console import cli
from launch.trainer import command, train
from sam3d_jax.models import parameters, registry
from sam3d_jax.torch_bridge import release, stream
from sam3d_jax.training import checkpoint_arrays, checkpoint_params, checkpoint_steps
from tests.support import jobs, tiny_dataset


class Stage(NamedTuple):
  config: str
  command: str  # stage that the command accepts
  before: str | None  # the stage whose parameters it starts from
  source: str  # in the mixture, of the records that are made here


STAGES = {
  "pretrain": Stage("configs/pretrain_geometry.py", "pretrain", None, "iso_3do"),
  "midtrain_os": Stage("configs/midtrain_os_geometry.py", "midtrain", "pretrain", "rp_3do_osr"),
  "sft": Stage("configs/sft_geometry.py", "sft", "midtrain_os", "mitl_3do"),
  "dpo": Stage("configs/dpo_geometry.py", "dpo", "sft", "preferences"),
  "distill": Stage("configs/distill_geometry.py", "distill", "dpo", "mitl_3do"),
}
STEPS, KILLED_AT = 4, 2
KILLED = ("dpo", "distill")  # one keeps a reference, one starts where that ended
LAYOUT_ONLY = "flow/(latents/(rotation|translation|scale|translation_scale)|blocks/layer/layout)/.*"


class Work:
  """Folders of the stages, each trained when it is first asked for."""

  def __init__(self, root):
    self.root = root
    self.vae, digest = make_vae(root / "vae")

    # Both kinds of records, to train on and to evaluate on.
    self.data = {}
    for kind in ("example", "preference"):
      for split, count, first in (("train", 6, 0), ("test", 3, 20)):
        self.data[kind] = tiny_dataset.write_dataset(
          root / kind,
          count,
          name=kind,
          split=split,
          shards=1,
          first=first,
          kind=kind,
          change=lambda example: with_latents(example, digest),
        )
    self.trained = functools.cache(self._trained)

  def run(self, stage: str, folder, *overrides: str, parent=None) -> int:
    """The exit code of a stage's command."""
    about = STAGES[stage]
    kind = "preference" if stage == "dpo" else "example"
    argv = [
      "--config",
      f"{about.config}:fake",
      "--workdir",
      str(folder),
      "--config.data.kind=shards",
      f"--config.data.mixture.{about.source}.path={self.data[kind]}",
      f"--config.steps={STEPS}",
      f"--config.eval.every={STEPS}",
      "--config.sampler.steps=2",
      *overrides,
    ]
    if parent is not None:
      argv.append(f"--config.init_from={parent}")
    return command.main((about.command,), "x", argv)

  def _trained(self, stage: str):
    """The stage's folder, some after they were stopped once and resumed; with evaluation of shapes
    where that is cheap to compile.
    """
    folder, about = self.root / stage, STAGES[stage]

    # The first stage's own training is tests/launch/train_command_test.py's.
    if about.before is None:
      config = cli.load_config(f"{about.config}:fake")
      write_random(folder, config, seed=1)
      return folder

    evaluation = []
    if stage in ("sft", "distill"):
      evaluation += [f"--config.eval.decoder={self.vae}", "--config.eval.objects=3"]
    if stage == "distill":
      evaluation.append("--config.eval.steps_curve=(1,2)")
    # Fine-tuning has the same losses and evaluates them.
    if stage == "midtrain_os":
      evaluation.append("--config.eval.every=0")

    parent = self.trained(about.before)
    if stage in KILLED:
      self.kill(stage, folder, *evaluation, parent=parent)
    assert self.run(stage, folder, *evaluation, parent=parent) == 0
    return folder

  def kill(self, stage: str, folder, *overrides: str, parent) -> None:
    """Starts the stage and stops it as a cluster would."""
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(train, "Progress", Killer)
      assert self.run(stage, folder, *overrides, parent=parent) == cli.EXIT_RETRY
    assert checkpoint_steps.steps(folder) == [KILLED_AT]


class Killer(train.Progress):
  """Sends this process a SIGTERM, as a cluster would, when the second step is under way."""

  def update(self, n=1, **fields):
    super().update(n, **fields)
    if self.count == KILLED_AT:
      os.kill(os.getpid(), signal.SIGTERM)


def make_vae(folder, seed=3):
  """A structure VAE of 8^3 voxels with random parameters as a checkpoint, and its digest."""
  config = cli.load_config("configs/vae_structure.py:fake", ["--config.model.resolution=8"])
  with config.unlocked():
    config.model.channels = (4, 8, 16)
  digest = write_random(folder, config, seed=seed)
  return folder, digest


def write_random(folder, config, *, seed) -> str:
  """Writes a checkpoint of random parameters: their digest."""
  module = registry.build_model(config.model, rngs=nnx.Rngs(seed))
  params = jax.tree.map(np.asarray, parameters.flat_params(module))
  meta = {
    "config": config.to_dict(),
    "lineage": {"stage": config.stage},
  }
  stream.write_params(folder, params, meta)
  return parameters.params_digest(params)


def with_latents(example, digest: str):
  """Latents of the size that the smallest model takes, in the name of the test's autoencoder."""
  rng = np.random.default_rng(len(example["voxels"]))

  def encoded(candidate):
    return candidate | {
      "structure_latent": rng.standard_normal((2, 2, 2, 8), np.float32),
      "structure_latent_autoencoder": digest,
    }

  example = encoded(example)
  if "losers" in example:
    example["losers"] = [encoded(loser) for loser in example["losers"]]
  return example


def export(work: Work, checkpoint_folder, out, *flags: str) -> None:
  argv = [
    "--checkpoint",
    str(checkpoint_folder),
    "--vae",
    str(work.vae),
    "--out",
    str(out),
    "--safetensors",
    *flags,
  ]
  assert export_torch.main(argv) == 0


def rows_with(name: str, folder) -> list[dict]:
  """The rows of metrics in which a value stands."""
  return [row for row in jobs.metric_rows(folder) if name in row]


def parent_of(folder) -> dict:
  """What a checkpoint says of the one that it started from."""
  (parent,) = checkpoint_steps.read_meta(folder)["lineage"]["parents"]
  return parent


@pytest.fixture(scope="module")
def work(tmp_path_factory):
  return Work(tmp_path_factory.mktemp("stages"))


@pytest.mark.parametrize("stage", ["midtrain_os", "sft", "dpo", "distill"])
def test_a_stage_starts_from_the_one_before_and_evaluates_killed_and_resumed_or_not(work, stage):
  folder = work.trained(stage)
  processes = 2 if stage in KILLED else 1
  assert checkpoint_steps.steps(folder)[-1] == STEPS
  assert len(jobs.ledger_rows(folder)) == processes

  before = checkpoint_steps.read_meta(work.trained(STAGES[stage].before))
  assert parent_of(folder)["digest"] == checkpoint_steps.digest(before)

  if stage != "midtrain_os":
    (evaluated,) = rows_with("eval/loss", folder)
    assert evaluated["step"] == STEPS
    assert np.isfinite(evaluated["eval/loss"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["midtrain_os", "sft"])
def test_a_killed_stage_ends_bit_for_bit_where_an_unbroken_one_does(work, stage, tmp_path):
  unbroken = work.trained(stage)
  parent = work.trained(STAGES[stage].before)
  plain = "--config.eval.every=0"
  work.kill(stage, tmp_path / "run", plain, parent=parent)
  assert work.run(stage, tmp_path / "run", plain, parent=parent) == 0
  jobs.assert_same_run(unbroken, tmp_path / "run")


@pytest.mark.parametrize("stage", ["sft", "dpo", "distill"])
def test_every_stage_exports_what_it_trained(work, stage, tmp_path):
  folder = work.trained(stage)
  export(work, folder, tmp_path / "r")
  _, config = checkpoint_params.restore_model(folder)
  opened = release.open_geometry(release.read_release(tmp_path / "r"), config.model)
  trained = checkpoint_params.load_params(folder)
  for path in (
    "flow/blocks/layer/shape/mlp/up/kernel",
    "flow/step/out/kernel",
    "condition/pointmap_encoder/point_proj/kernel",
  ):
    np.testing.assert_array_equal(opened[path], trained[path], err_msg=path)


def test_evaluation_scores_shapes_and_poses_and_leaves_pictures_and_meshes(work):
  folder = work.trained("sft")
  (row,) = rows_with("eval/viou", folder)
  for name in ("viou", "f1", "chamfer", "rotation_deg", "iou_3d", "floaters", "missing"):
    assert np.isfinite(row[f"eval/{name}"]), name
  assert any(name.startswith("eval/flow_time/") for name in row)

  picture = folder / "previews" / f"{STEPS:08d}.png"
  assert picture.stat().st_size > 1000
  meshes = picture.with_suffix("")
  assert len(list(meshes.glob("*.glb"))) <= 3


def test_distillation_ends_with_quality_over_the_number_of_steps(work):
  folder = work.trained("distill")
  with (folder / "steps_quality.csv").open() as file:
    table = list(csv.DictReader(file))
  measured = {(row["sampler"], int(row["steps"])) for row in table}
  assert measured == {("shortcut", 1), ("shortcut", 2), ("plain", 1), ("plain", 2)}
  for row in table:
    assert 0 <= float(row["viou"]) <= 1
  assert (folder / "steps_quality.png").exists()


def test_alignment_logs_margins_accuracy_and_rewards_and_keeps_its_reference(work):
  folder = work.trained("dpo")
  names = {"dpo/margin", "dpo/accuracy", "dpo/reward_win", "dpo/reward_lose"}
  for row in rows_with("loss", folder):
    assert names <= set(row)

  # The reference is the parent, still.
  stored = checkpoint_steps.stored_shapes(folder)
  wanted = {path: leaf for path, leaf in stored.items() if path.startswith("reference/")}
  reference = checkpoint_arrays.read_arrays(folder, STEPS, wanted, partial=True)
  parent = checkpoint_params.load_params(work.trained("sft"))
  assert len(reference) == len(parent)
  for path, array in reference.items():
    expected = parent[path.removeprefix("reference/")]
    np.testing.assert_array_equal(array, expected, err_msg=path)


def test_training_the_layout_alone_leaves_every_shape_parameter_as_it_was(work, tmp_path):
  start = work.trained("midtrain_os")
  code = work.run(
    "sft",
    tmp_path,
    f"--config.optim.trainable={LAYOUT_ONLY}",
    "--config.optim.warmup_steps=0",
    "--config.eval.every=0",
    parent=start,
  )
  assert code == 0

  before = checkpoint_params.load_params(start)
  after = checkpoint_params.load_params(tmp_path, which="raw")
  moved = [path for path in before if not np.array_equal(before[path], after[path])]
  assert moved
  for path in moved:
    assert re.fullmatch(LAYOUT_ONLY, path)
    assert "shape" not in path
    assert "adaln" not in path
    assert not path.startswith("condition")


def test_adapters_train_alone_and_are_merged_into_the_release(work, tmp_path):
  start = work.trained("midtrain_os")
  targets = "flow/blocks/layer/.*_attn/(qkv|q|kv|out)"
  run = tmp_path / "run"
  code = work.run(
    "sft",
    run,
    f"--config.lora.targets={targets}",
    "--config.lora.rank=2",
    "--config.optim.warmup_steps=0",
    "--config.eval.every=0",
    parent=start,
  )
  assert code == 0

  # Trained alone, ...
  stored = checkpoint_steps.stored_shapes(run)
  trained = [path for path in stored if path.startswith("params/")]
  assert len(trained) == 20
  for path in trained:
    assert re.fullmatch(f"params/{targets}/lora_[ab]", path)

  # ... and merged.
  export(work, run, tmp_path / "r", "--merge_lora")
  module, config = checkpoint_params.restore_model(run)
  merged = parameters.flat_params(module)
  opened = release.open_geometry(release.read_release(tmp_path / "r"), config.model)
  before = checkpoint_params.load_params(start)
  for path in (
    "flow/blocks/layer/layout/cross_attn/kv/kernel",
    "flow/blocks/layer/shape/self_attn/qkv/kernel",
  ):
    np.testing.assert_allclose(opened[path], merged[path], rtol=1e-6, atol=1e-6, err_msg=path)
    assert not np.array_equal(opened[path], before[path])


def test_leaves_that_the_parent_lacks_are_an_error_unless_they_are_listed(work, tmp_path, capsys):
  parent = work.trained("pretrain")
  code = work.run("midtrain_os", tmp_path, "--config.init_allow=nothing", parent=parent)
  assert code == cli.EXIT_BAD_INPUT
  assert "missing on disk  condition/pointmap_encoder/" in capsys.readouterr().err

  # As configured, those of point maps are listed.
  fresh = parent_of(work.trained("midtrain_os"))["fresh"]
  assert fresh
  for path in fresh:
    assert path.startswith(("condition/pointmap_encoder/", "condition/pointmap_projection/"))


def test_lineage_prints_the_chain_to_the_first_stage(work, capsys):
  folder = work.trained("distill")
  capsys.readouterr()
  assert inspect.main(["--checkpoint", str(folder), "--lineage"]) == 0
  out = capsys.readouterr().out
  stages = re.findall(r"  stage (\w+)", out)
  assert stages == ["distill", "dpo", "sft", "midtrain", "pretrain"]
  assert "commit" in out
  assert "dataset preferences" in out


def test_a_decoder_of_other_latents_is_refused_before_training(work, tmp_path, capsys):
  other, _ = make_vae(tmp_path / "vae", seed=9)
  parent = work.trained("midtrain_os")
  code = work.run("sft", tmp_path / "run", f"--config.eval.decoder={other}", parent=parent)
  assert code == cli.EXIT_BAD_INPUT
  assert "the latents of the data were made by" in capsys.readouterr().err
  assert checkpoint_steps.steps(tmp_path / "run") == []
