"""Launchers: what they render, what they refuse, and when they start a job again. Scripts are run
for real, on stand-ins of a cluster.
"""

import dataclasses
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from launch import sweep
from launch.cluster import command, flags, retry
from launch.cluster.spec import Kubernetes, Slurm, Spec, TpuVm, Xpk, load
from launch.console import cli

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "cluster"
SPECS = sorted(GOLDEN.glob("*.yaml"))


@pytest.fixture(params=SPECS, ids=lambda p: p.stem)
def spec_file(request):
  return request.param


def rendered_of(file) -> dict[str, str]:
  """File name -> text of everything that a specification renders."""
  return {name: text for name, (text, _) in command.render_all(load(file)).items()}


def test_every_launcher_is_rendered_as_recorded(spec_file):
  rendered = rendered_of(spec_file)
  recorded = {file.name: file.read_text() for file in (GOLDEN / spec_file.stem).iterdir()}
  assert rendered == recorded, (
    f"if this is meant: python -m launch.cluster --spec tests/golden/cluster/{spec_file.name} "
    f"--out tests/golden/cluster/{spec_file.stem}"
  )


def test_scripts_are_bash_and_jobsets_are_yaml(spec_file):
  for name, text in rendered_of(spec_file).items():
    if name.endswith(".sh"):
      subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    else:
      assert yaml.safe_load(text)["kind"] == "JobSet"


def test_every_launcher_runs_the_same_command_with_the_flags_of_the_platform(spec_file):
  spec = load(spec_file)
  variable = flags.FLAG_VARIABLES[spec.kind]
  *_, last_flag = spec.environment[variable].split()
  for name, text in rendered_of(spec_file).items():
    # without the quotes of shells, and without the dashes of lists in YAML
    unquoted = text.replace("'\"'\"'", "'").replace("\n              - ", " ").replace("'", "")
    words = " ".join(unquoted.split())
    assert " ".join(spec.argv) in words, name
    assert variable in text, name
    assert last_flag in text, name


def test_a_jobset_fails_on_bad_input_and_starts_again_on_everything_else(spec_file):
  text = rendered_of(spec_file)["jobset.yaml"]
  job = yaml.safe_load(text)["spec"]

  # the set of jobs: fails with a job that was refused, else starts again
  policy = job["failurePolicy"]
  (rule,) = policy["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert policy["maxRestarts"] > 0

  # the job of a slice: refused by one pod with bad input, never started again by itself
  inner = job["replicatedJobs"][0]["template"]["spec"]
  (refused,) = inner["podFailurePolicy"]["rules"]
  assert refused["action"] == "FailJob"
  assert refused["onExitCodes"]["values"] == [cli.EXIT_BAD_INPUT]
  assert inner["backoffLimit"] == 0
  # without it Kubernetes refuses a podFailurePolicy
  assert inner["template"]["spec"]["restartPolicy"] == "Never"


def write_spec(folder, **changes):
  """A small valid specification whose interpreter is a script that ends with the codes in `codes`,
  one a start.
  """
  values = {
    "name": "job",
    "command": "pretrain",
    "config": "configs/pretrain_geometry.py:fake",
    "workdir": str(folder / "run"),
    "platform": "cpu",
    "retries": 2,
    "python": str(folder / "python"),
  }
  values |= changes
  given = {key: value for key, value in values.items() if value is not None}
  file = folder / "job.yaml"
  file.write_text(yaml.safe_dump(given))
  return file


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"hostz": 2}, "unknown key 'hostz'; the nearest is 'hosts'"),
    ({"slurm": {"tiem": "1:00:00"}}, "unknown key 'slurm.tiem'; the nearest is 'slurm.time'"),
    ({"slurm": {}}, "lacks slurm.time"),
    ({"slurm": {"time": 86400}}, "slurm.time = 86400 is not text; put it in quotes"),
    ({"hosts": "four"}, "hosts = 'four' is not a number"),
    ({"hosts": 0}, "hosts = 0 must be at least 1"),
    ({"name": "My_Job"}, "name = 'My_Job' must be"),
    ({"command": "pretrian"}, "command = 'pretrian' is not one of pretrain"),
    ({"platform": "v4"}, "platform = 'v4' is not one of v5e"),
    ({"workdir": "runs"}, "must be an absolute path"),
    ({"slices": 2}, "only TPUs come in slices"),
    ({"slurm": None}, "at least one of the sections"),
    ({"overrides": {"optim.lrr": 1}}, "the nearest key is 'optim.lr'"),
    (
      {"xpk": {"cluster": "c", "project": "p", "zone": "z", "device_type": "v5p-8", "image": "i"}},
      "remove the section xpk",
    ),
    (
      {"kubernetes": {"image": "i", "claim": "c", "mount": "/elsewhere"}},
      "is not below kubernetes.mount",
    ),
  ],
)
def test_a_wrong_specification_is_refused_with_key_value_and_remedy(
  tmp_path, capsys, changes, words
):
  settings = {"slurm": {"time": "1:00:00"}} | changes
  file = write_spec(tmp_path, **settings)
  out = tmp_path / "out"
  assert command.main(["--spec", str(file), "--out", str(out)]) == cli.EXIT_BAD_INPUT
  assert words in capsys.readouterr().err
  assert not out.exists()


def xpk(device_type: str) -> dict:
  """A section xpk for these devices."""
  return {"cluster": "c", "project": "p", "zone": "z", "device_type": device_type, "image": "i"}


def kubernetes(**selector: str) -> dict:
  """A section kubernetes with these node selectors of GKE."""
  keys = {
    f"cloud.google.com/gke-{name.replace('_', '-')}": value for name, value in selector.items()
  }
  return {"image": "i", "claim": "c", "mount": "/", "node_selector": keys}


V6E = {"platform": "v6e", "hosts": 4, "chips": 4, "slurm": None}


@pytest.mark.parametrize(
  "changes, words",
  [
    # the names of slices
    (
      V6E | {"xpk": xpk("v6e-32")},
      "32 chips, hosts = 4, chips = 4 are 16: give hosts: 8",
    ),
    (V6E | {"xpk": xpk("v5p-32")}, "'v5p-32' is no v6e, which platform says"),
    (V6E | {"platform": "v5p", "xpk": xpk("v5p-16")}, "'v5p-16' has 8 chips"),
    (V6E | {"hosts": 2, "chips": 8, "xpk": xpk("v6e-16")}, "give chips: 4 and hosts: 4"),
    # the nodes of GKE
    (V6E | {"kubernetes": kubernetes(tpu_topology="4x8")}, "'4x8' has 32 chips"),
    (V6E | {"kubernetes": kubernetes(tpu_topology="16")}, None),
    (V6E | {"kubernetes": kubernetes(tpu_topology="4 by 4")}, "is not of the form 4x4 or 4x4x4"),
    (V6E | {"kubernetes": kubernetes(tpu_accelerator="tpu-v5p-slice")}, "is no v6e"),
    ({"platform": "h100", "kubernetes": kubernetes(accelerator="nvidia-h200-141gb")}, "is no h100"),
    # mesh, batch and slices
    (
      {"hosts": 3},
      "batch_size = 8 is global and does not divide over data x fsdp = 3",
    ),
    ({"hosts": 2, "overrides": {"mesh.fsdp": 3}}, "does not divide 2 devices"),
    (V6E | {"slices": 2, "xpk": xpk("v6e-16")}, "give overrides: {mesh.dcn_data: 2}"),
    ({"platform": "h100", "chips": 16, "overrides": {"mesh.tensor": 2}}, "16 processes"),
    # the configuration
    ({"command": "sft"}, "this command runs sft: use launch.pretrain"),
    (
      {"overrides": {"model.flow.dtype": "bf16"}},
      "model.flow.dtype = 'bf16' is not one of",
    ),
    ({"overrides": {"accumulate": 3}}, "the nearest that do are accumulate = 4"),
  ],
)
def test_what_does_not_go_together_is_refused_with_key_value_and_remedy(
  tmp_path, capsys, changes, words
):
  settings = {"slurm": {"time": "1:00:00"}, "overrides": {}} | changes
  settings["overrides"] = {"batch_size": 8} | settings["overrides"]
  if settings.get("platform") == "v6e" and words is None:
    settings["overrides"]["batch_size"] = 16
  file = write_spec(tmp_path, **settings)
  out = tmp_path / "out"
  code = command.main(["--spec", str(file), "--out", str(out)])
  said = capsys.readouterr().err
  if words is None:
    assert code == 0, said
    return
  assert code == cli.EXIT_BAD_INPUT
  assert f"{file}: " in said
  assert words in said
  assert not out.exists()


def test_every_recorded_specification_goes_together(spec_file, tmp_path):
  assert command.main(["--spec", str(spec_file), "--out", str(tmp_path / "out")]) == 0


STAND_INS = {
  # The training process: ends with the next of the codes.
  "python": """code=$(head -n 1 {folder}/codes); sed -i 1d {folder}/codes
echo "$XLA_PYTHON_CLIENT_MEM_FRACTION $@" >> {folder}/starts
if [[ $code == killed ]]; then kill -9 $PPID; fi
if [[ $code == told ]]; then trap "exit 75" TERM; kill -TERM $PPID; for ((;;)); do :; done; fi
exit $code""",
  "srun": """while [[ $1 == --* ]]; do shift; done; SLURM_PROCID=0 "$@" """,
  "scontrol": """echo "$@" >> {folder}/requeued""",
  "gcloud": """bash -c "${{@: -1}}" """,  # ... --command WHAT
  "sleep": "",
}


@pytest.fixture
def cluster(tmp_path):
  """Runs a rendered script on stand-ins of srun, scontrol, gcloud and the training process; returns
  its exit code.
  """
  programs = tmp_path / "bin"
  programs.mkdir()
  for name, text in STAND_INS.items():
    # the interpreter is named by the specification, the others are found
    file = tmp_path / name if name == "python" else programs / name
    file.write_text(f"#!/bin/bash\n{text.format(folder=tmp_path)}\n")
    file.chmod(0o755)

  def start(script: str, *codes) -> int:
    lines = [f"{code}\n" for code in codes]
    (tmp_path / "codes").write_text("".join(lines))
    env = os.environ | {
      "PATH": f"{programs}:{os.environ['PATH']}",
      "SLURM_JOB_ID": "7",
      "RETRY_SECONDS": "0",
    }
    ended = subprocess.run(
      ["bash", "-c", script],
      cwd=tmp_path,
      env=env,
      capture_output=True,
      timeout=60,
    )
    return ended.returncode

  return start


def count(file: pathlib.Path) -> int:
  """Lines of a file, 0 if there is none."""
  return len(file.read_text().splitlines()) if file.exists() else 0


def test_slurm_requeues_after_75_and_failures_but_never_after_bad_input(cluster, tmp_path):
  file = write_spec(tmp_path, platform="h100", slurm={"time": "1:00:00"})
  script = rendered_of(file)["slurm.sh"]
  requeued = tmp_path / "requeued"

  # bad input, then stopped after saving
  assert cluster(script, cli.EXIT_BAD_INPUT) == cli.EXIT_BAD_INPUT
  assert count(requeued) == 0
  assert cluster(script, cli.EXIT_RETRY) == cli.EXIT_RETRY
  assert requeued.read_text() == "requeue 7\n"

  # three failures in a row, with two retries
  assert cluster(script, 1) == cli.EXIT_RETRY
  assert cluster(script, "killed") == cli.EXIT_RETRY
  assert count(requeued) == 3
  assert cluster(script, 1) == 1
  assert count(requeued) == 3

  # done
  assert cluster(script, 0) == 0
  assert count(requeued) == 3
  assert "0.92 -m launch.pretrain --config=" in (tmp_path / "starts").read_text()


def test_slurm_telling_only_the_shell_stops_the_process_and_keeps_its_exit_code(cluster, tmp_path):
  file = write_spec(tmp_path, slurm={"time": "1:00:00"})
  script = rendered_of(file)["slurm.sh"]
  assert cluster(script, "told") == cli.EXIT_RETRY
  assert count(tmp_path / "requeued") == 1
  codes = tmp_path / "run" / "launch" / "7_0"
  assert [code.read_text() for code in codes.iterdir()] == ["75\n"]


def test_a_tpu_vm_is_started_again_after_75_and_failures_but_never_after_bad_input(
  cluster, tmp_path
):
  place = {"tpu": "t", "project": "p", "zone": "z", "folder": str(tmp_path)}
  file = write_spec(tmp_path, platform="v5e", tpu_vm=place)
  script = rendered_of(file)["tpu_vm.sh"]
  starts = tmp_path / "starts"
  assert cluster(script, 75, 1, 75, 0) == 0
  assert count(starts) == 4
  assert cluster(script, 75, 2, 0) == cli.EXIT_BAD_INPUT
  assert count(starts) == 4 + 2
  # the third failure in a row, with two retries
  assert cluster(script, 1, 1, 1, 0) == 1
  assert count(starts) == 4 + 2 + 3


def test_one_process_that_refuses_its_input_refuses_the_job():
  def outcome(*codes: int) -> str:
    words = " ".join(map(str, codes))
    script = f"{retry.DECIDE}\nverdict {words}"
    ended = subprocess.run(["bash", "-c", script], text=True, capture_output=True, check=True)
    return ended.stdout.strip()

  assert outcome(0, 0) == "done"
  assert outcome(0, 75) == "stopped"
  assert outcome(75, 137, 75) == "failed"
  assert outcome(75, 1, 2) == "refused"


def test_the_compiler_knows_every_flag_of_the_bundles_that_it_can_check_here():
  """XLA ends the process at an unknown flag. Those of TPUs are libtpu's, which is not installed
  here.
  """
  bundle = flags.environment("h100")["XLA_FLAGS"]
  env = os.environ | {"XLA_FLAGS": bundle, "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-c", "import jax; jax.devices()"]
  subprocess.run(command, env=env, check=True, capture_output=True)


def test_own_compiler_flags_come_after_the_bundles_and_other_variables_replace_it():
  env = flags.environment("h100", {"XLA_FLAGS": "--a=1", "NCCL_DEBUG": "INFO"})
  assert env["XLA_FLAGS"].startswith("--xla_gpu")
  assert env["XLA_FLAGS"].endswith(" --a=1")
  assert env["NCCL_DEBUG"] == "INFO"


def test_only_variables_that_change_how_a_program_runs_are_recorded():
  ours = {"NCCL_DEBUG": "INFO", "XLA_FLAGS": "x"}
  assert flags.recorded({**ours, "HOME": "/"}) == ours


@pytest.mark.parametrize("platform", flags.PLATFORMS)
def test_no_bundle_names_a_flag_twice(platform):
  _, bundle, _ = flags.PLATFORMS[platform]
  names = [name for name, _ in bundle]
  assert len(names) == len(set(names))


def test_the_command_writes_one_file_a_section_and_says_how_to_submit_it(tmp_path, capsys):
  spec = GOLDEN / "tpu.yaml"
  assert command.main(["--spec", str(spec), "--out", str(tmp_path)]) == 0
  assert {file.name for file in tmp_path.iterdir()} == {"jobset.yaml", "xpk.sh", "tpu_vm.sh"}
  jobset = tmp_path / "jobset.yaml"
  assert f"kubectl create -f {jobset}" in capsys.readouterr().out


def test_a_sweep_runs_every_trial_as_a_slurm_job_of_the_specification(tmp_path, capsys):
  argv = [
    "--sweep",
    "configs/sweeps/lr.py",
    "--workdir",
    str(tmp_path),
    "--base",
    "configs/pretrain_geometry.py:fake",
    "--set",
    "batch_size=32",
    "--dry_run",
  ]
  assert sweep.main([*argv, "--cluster", str(GOLDEN / "gpu.yaml")]) == 0
  _, first_trial, *_ = capsys.readouterr().out.splitlines()
  _, *words = shlex.split(first_trial)  # without its name
  assert words[0] == "env"
  wanted = {"--nodes=4", "--ntasks-per-node=8", "--partition=train"}
  assert wanted | {"NCCL_DEBUG=WARN", "srun"} <= set(words)
  # options of srun, then: python -m launch.pretrain
  module = words.index("launch.pretrain")
  assert words.index("srun") < module
  assert not words[module - 2].startswith("-")

  assert sweep.main([*argv, "--cluster", str(GOLDEN / "tpu.yaml")]) == cli.EXIT_BAD_INPUT
  assert "no section slurm" in capsys.readouterr().err


def test_a_sweep_whose_trials_do_not_divide_over_the_machines_is_refused_before_a_file_is_written(
  tmp_path, capsys
):
  # 4 x 8 devices; the second trial's batch does not divide over them
  file = tmp_path / "sizes.py"
  spec = {
    "command": "pretrain",
    "config": "configs/pretrain_geometry.py:fake",
    "space": [{"product": {"batch_size": (32, 48)}}],
    "metric": "eval/loss",
  }
  file.write_text(f"def get_sweep():\n  return {spec!r}\n")
  out = tmp_path / "out"
  cluster = str(GOLDEN / "gpu.yaml")
  argv = ["--sweep", str(file), "--workdir", str(out), "--cluster", cluster]
  assert sweep.main(argv) == cli.EXIT_BAD_INPUT
  said = capsys.readouterr().err
  assert "{'batch_size': 48}" in said
  assert f"{cluster}: hosts = 4, chips = 8" in said
  assert "batch_size = 48 is global and does not divide over data x fsdp = 32" in said
  assert not out.exists()


def test_the_example_of_the_documentation_is_valid_and_names_every_key(tmp_path):
  page = (GOLDEN.parents[2] / "docs" / "operations.md").read_text()
  _, _, behind = page.partition("```yaml\n")
  example, _, _ = behind.partition("```")
  file = tmp_path / "job.yaml"
  file.write_text(example)
  assert set(rendered_of(str(file))) == {"slurm.sh", "jobset.yaml"}

  keys = set()
  for section in (Spec, Slurm, Kubernetes, Xpk, TpuVm):
    keys |= {field.name for field in dataclasses.fields(section)}
  assert [key for key in sorted(keys) if not re.search(rf"\b{key}\b", example)] == []


@pytest.mark.parametrize("name", ["A=1; touch x; B", "", "1A", "A B", "A-B", "$(id)"])
def test_what_is_no_name_of_a_variable_is_refused(tmp_path, name):
  values = yaml.safe_load(SPECS[0].read_text())
  values["env"] = {name: "x"}
  file = tmp_path / "job.yaml"
  file.write_text(yaml.safe_dump(values))
  with pytest.raises(cli.ConfigError, match="no name of a variable"):
    load(str(file))


def test_what_is_rendered_is_for_its_owner_alone(tmp_path):
  assert command.main(["--spec", str(SPECS[0]), "--out", str(tmp_path / "job")]) == 0
  for path in (tmp_path / "job").iterdir():
    assert path.stat().st_mode & 0o077 == 0


def test_the_collected_job_file_is_refused(hostile_dir, capsys, tmp_path):
  file = hostile_dir / "job_yaml_env_name" / "job.yaml"
  assert command.main(["--spec", str(file), "--out", str(tmp_path / "job")]) == 2
  assert "no name of a variable" in capsys.readouterr().err
  assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("key", ["time", "partition", "account", "options"])
def test_a_text_does_not_begin_a_line_of_the_script(tmp_path, key):
  slurm = {"time": "1:00:00", key: "x\ntouch OUT"}
  if key == "options":
    slurm[key] = ["--qos=x\rtouch OUT"]
  file = write_spec(tmp_path, slurm=slurm)
  with pytest.raises(cli.ConfigError, match=f"slurm.{key} = .*line break"):
    load(str(file))
