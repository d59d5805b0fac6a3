"""Every stage of the ladder at its smallest: starts from the stage before, is killed, resumes,
evaluates and exports.
"""

import csv
import functools
import json
import os
import re
import signal

from flax import nnx
import numpy as np
import pytest

from launch import export_torch, inspect
from launch.console import cli
from launch.trainer import command, train
from sam3d_jax.models import parameters, registry
from sam3d_jax.torch_bridge import release, stream
from sam3d_jax.training import checkpoint
from tests.support import jobs, tiny_dataset

STAGES = {  # stage -> (configuration, stage of the command, stage before, source in the mixture)
  "pretrain": ("configs/pretrain_geometry.py", "pretrain", None, "iso_3do"),
  "midtrain_os": ("configs/midtrain_os_geometry.py", "midtrain", "pretrain", "rp_3do_osr"),
  "sft": ("configs/sft_geometry.py", "sft", "midtrain_os", "mitl_3do"),
  "dpo": ("configs/dpo_geometry.py", "dpo", "sft", "preferences"),
  "distill": ("configs/distill_geometry.py", "distill", "dpo", "mitl_3do"),
}
STEPS, KILLED_AT = 4, 2
KILLED = ("dpo", "distill")  # one keeps a reference, one starts where that ended
LAYOUT_ONLY = "flow/(latents/(rotation|translation|scale|translation_scale)|blocks/layer/layout)/.*"


class Work:
  """Folders of the stages, each trained when it is first asked for."""

  def __init__(self, root):
    self.root = root
    self.vae, digest = make_vae(root / "vae")
    latents = lambda example: with_latents(example, digest)
    self.data = {
      kind: tiny_dataset.write_dataset(
        root / kind, 6, name=kind, shards=1, kind=kind, change=latents
      )
      for kind in ("example", "preference")
    }
    for kind, folder in self.data.items():
      tiny_dataset.write_dataset(
        folder, 3, name=kind, split="test", shards=1, first=20, kind=kind, change=latents
      )
    self.trained = functools.cache(self._trained)

  def run(self, stage: str, folder, *overrides: str, parent=None) -> int:
    config, name, _, source = STAGES[stage]
    data = self.data["preference" if stage == "dpo" else "example"]
    argv = [
      "--config",
      f"{config}:fake",
      "--workdir",
      str(folder),
      "--config.data.kind=shards",
      f"--config.data.mixture.{source}.path={data}",
      f"--config.steps={STEPS}",
      f"--config.eval.every={STEPS}",
      "--config.sampler.steps=2",
      *overrides,
    ]
    if parent is not None:
      argv.append(f"--config.init_from={parent}")
    return command.main((name,), "x", argv)

  def _trained(self, stage: str):
    """The stage's folder, some after they were stopped once and resumed; with evaluation of shapes
    where that is cheap to compile.
    """
    folder, before = self.root / stage, STAGES[stage][2]
    if before is None:  # its own training is tests/launch/train_command_test.py's
      return write_random(folder, cli.load_config(f"{STAGES[stage][0]}:fake"), seed=1)[0]
    parent = self.trained(before)
    scored = (
      [f"--config.eval.decoder={self.vae}", "--config.eval.objects=3"]
      if stage in ("sft", "distill")
      else []
    )
    scored += ["--config.eval.steps_curve=(1,2)"] if stage == "distill" else []
    # fine-tuning has the same losses and evaluates them
    scored += ["--config.eval.every=0"] if stage == "midtrain_os" else []
    if stage in KILLED:
      self.kill(stage, folder, *scored, parent=parent)
    assert self.run(stage, folder, *scored, parent=parent) == 0
    return folder

  def kill(self, stage: str, folder, *overrides: str, parent) -> None:
    """Starts the stage and stops it as a cluster would."""
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(train, "Progress", Killer)
      assert self.run(stage, folder, *overrides, parent=parent) == cli.EXIT_RETRY
    assert checkpoint.steps(folder) == [KILLED_AT]


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
  return write_random(folder, config, seed=seed)


def write_random(folder, config, *, seed):
  """A checkpoint of random parameters, and their digest."""
  params = {
    p: np.asarray(x)
    for p, x in parameters.flat_params(
      registry.build_model(config.model, rngs=nnx.Rngs(seed))
    ).items()
  }
  stream.write_params(
    folder, params, {"config": config.to_dict(), "lineage": {"stage": config.stage}}
  )
  return folder, parameters.params_digest(params)


def with_latents(example, digest: str):
  """Latents of the size that the smallest model takes, in the name of the test's autoencoder."""
  rng = np.random.default_rng(len(example["voxels"]))
  own = lambda: {
    "structure_latent": rng.standard_normal((2, 2, 2, 8), np.float32),
    "structure_latent_autoencoder": digest,
  }
  example = example | own()
  if "losers" in example:
    example["losers"] = [loser | own() for loser in example["losers"]]
  return example


@pytest.fixture(scope="module")
def work(tmp_path_factory):
  return Work(tmp_path_factory.mktemp("stages"))


def rows(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["midtrain_os", "sft", "dpo", "distill"])
def test_a_stage_starts_from_the_one_before_and_evaluates_killed_and_resumed_or_not(work, stage):
  folder, before = work.trained(stage), STAGES[stage][2]
  assert checkpoint.steps(folder)[-1] == STEPS
  assert len(jobs.ledger_rows(folder)) == (2 if stage in KILLED else 1)
  (parent,) = checkpoint.read_meta(folder)["lineage"]["parents"]
  assert parent["digest"] == checkpoint.digest(checkpoint.read_meta(work.trained(before)))
  if stage != "midtrain_os":
    (evaluated,) = [r for r in rows(folder) if "eval/loss" in r]
    assert evaluated["step"] == STEPS and np.isfinite(evaluated["eval/loss"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["midtrain_os", "sft"])
def test_a_killed_stage_ends_bit_for_bit_where_an_unbroken_one_does(work, stage, tmp_path):
  unbroken, parent = work.trained(stage), work.trained(STAGES[stage][2])
  plain = "--config.eval.every=0"
  work.kill(stage, tmp_path / "run", plain, parent=parent)
  assert work.run(stage, tmp_path / "run", plain, parent=parent) == 0
  jobs.assert_same_run(unbroken, tmp_path / "run")


@pytest.mark.parametrize("stage", ["sft", "dpo", "distill"])
def test_every_stage_exports_what_it_trained(work, stage, tmp_path):
  folder = work.trained(stage)
  assert (
    export_torch.main(
      [
        "--checkpoint",
        str(folder),
        "--vae",
        str(work.vae),
        "--out",
        str(tmp_path / "r"),
        "--safetensors",
      ]
    )
    == 0
  )
  _, config = checkpoint.restore_model(folder)
  opened, trained = (
    release.open_geometry(release.read_release(tmp_path / "r"), config.model),
    checkpoint.load_params(folder),
  )
  for path in (
    "flow/blocks/layer/shape/mlp/up/kernel",
    "flow/step/out/kernel",
    "condition/pointmap_encoder/point_proj/kernel",
  ):
    np.testing.assert_array_equal(opened[path], trained[path], err_msg=path)


def test_evaluation_scores_shapes_and_poses_and_leaves_pictures_and_meshes(work):
  folder = work.trained("sft")
  (row,) = [r for r in rows(folder) if "eval/viou" in r]
  names = ("viou", "f1", "chamfer", "rotation_deg", "iou_3d", "floaters", "missing")
  assert all(np.isfinite(row[f"eval/{name}"]) for name in names)
  assert any(name.startswith("eval/flow_time/") for name in row)
  assert (folder / "previews" / f"{STEPS:08d}.png").stat().st_size > 1000
  assert len(list((folder / "previews" / f"{STEPS:08d}").glob("*.glb"))) <= 3


def test_distillation_ends_with_quality_over_the_number_of_steps(work):
  table = list(csv.DictReader((work.trained("distill") / "steps_quality.csv").open()))
  assert {(r["sampler"], int(r["steps"])) for r in table} == {
    (s, n) for s in ("shortcut", "plain") for n in (1, 2)
  }
  assert all(0 <= float(r["viou"]) <= 1 for r in table)
  assert (work.trained("distill") / "steps_quality.png").exists()


def test_alignment_logs_margins_accuracy_and_rewards_and_keeps_its_reference(work):
  folder, parent = work.trained("dpo"), checkpoint.load_params(work.trained("sft"))
  logged = [r for r in rows(folder) if "loss" in r]
  assert all(
    {"dpo/margin", "dpo/accuracy", "dpo/reward_win", "dpo/reward_lose"} <= set(r) for r in logged
  )
  stored = checkpoint.stored_shapes(folder)
  wanted = {p: x for p, x in stored.items() if p.startswith("reference/")}
  reference = checkpoint.read_arrays(folder, STEPS, wanted, partial=True)
  assert len(reference) == len(parent)
  for path, array in reference.items():
    np.testing.assert_array_equal(array, parent[path.removeprefix("reference/")], err_msg=path)


def test_training_the_layout_alone_leaves_every_shape_parameter_as_it_was(work, tmp_path):
  start = work.trained("midtrain_os")
  assert (
    work.run(
      "sft",
      tmp_path,
      f"--config.optim.trainable={LAYOUT_ONLY}",
      "--config.optim.warmup_steps=0",
      "--config.eval.every=0",
      parent=start,
    )
    == 0
  )
  before, after = checkpoint.load_params(start), checkpoint.load_params(tmp_path, which="raw")
  moved = {p for p in before if not np.array_equal(before[p], after[p])}
  assert moved and all(re.fullmatch(LAYOUT_ONLY, p) for p in moved)
  assert not any("shape" in p or "adaln" in p or p.startswith("condition") for p in moved)


def test_adapters_train_alone_and_are_merged_into_the_release(work, tmp_path):
  start = work.trained("midtrain_os")
  targets = "flow/blocks/layer/.*_attn/(qkv|q|kv|out)"
  assert (
    work.run(
      "sft",
      tmp_path / "run",
      f"--config.lora.targets={targets}",
      "--config.lora.rank=2",
      "--config.optim.warmup_steps=0",
      "--config.eval.every=0",
      parent=start,
    )
    == 0
  )
  stored = checkpoint.stored_shapes(tmp_path / "run")
  trained = {p.removeprefix("params/") for p in stored if p.startswith("params/")}
  assert len(trained) == 20 and all(re.fullmatch(f"{targets}/lora_[ab]", p) for p in trained)
  assert (
    export_torch.main(
      [
        "--checkpoint",
        str(tmp_path / "run"),
        "--vae",
        str(work.vae),
        "--out",
        str(tmp_path / "r"),
        "--safetensors",
        "--merge_lora",
      ]
    )
    == 0
  )
  module, config = checkpoint.restore_model(tmp_path / "run")
  opened, merged = (
    release.open_geometry(release.read_release(tmp_path / "r"), config.model),
    parameters.flat_params(module),
  )
  before = checkpoint.load_params(start)
  for path in (
    "flow/blocks/layer/layout/cross_attn/kv/kernel",
    "flow/blocks/layer/shape/self_attn/qkv/kernel",
  ):
    np.testing.assert_allclose(opened[path], merged[path], rtol=1e-6, atol=1e-6, err_msg=path)
    assert not np.array_equal(opened[path], before[path])


def test_leaves_that_the_parent_lacks_are_an_error_unless_they_are_listed(work, tmp_path, capsys):
  assert (
    work.run(
      "midtrain_os", tmp_path, "--config.init_allow=nothing", parent=work.trained("pretrain")
    )
    == cli.EXIT_BAD_INPUT
  )
  assert "missing on disk  condition/pointmap_encoder/" in capsys.readouterr().err
  (parent,) = checkpoint.read_meta(work.trained("midtrain_os"))["lineage"]["parents"]
  assert parent["fresh"] and all(
    p.startswith(("condition/pointmap_encoder/", "condition/pointmap_projection/"))
    for p in parent["fresh"]
  )


def test_lineage_prints_the_chain_to_the_first_stage(work, capsys):
  assert inspect.main(["--checkpoint", str(work.trained("distill")), "--lineage"]) == 0
  out = capsys.readouterr().out
  stages = re.findall(r"  stage (\w+)", out)
  assert (
    stages == ["distill", "dpo", "sft", "midtrain", "pretrain"]
    and "commit" in out
    and "dataset preferences" in out
  )


def test_a_decoder_of_other_latents_is_refused_before_training(work, tmp_path, capsys):
  other, _ = make_vae(tmp_path / "vae", seed=9)
  assert (
    work.run(
      "sft", tmp_path / "run", f"--config.eval.decoder={other}", parent=work.trained("midtrain_os")
    )
    == cli.EXIT_BAD_INPUT
  )
  assert "the latents of the data were made by" in capsys.readouterr().err
  assert checkpoint.steps(tmp_path / "run") == []
