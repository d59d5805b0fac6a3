"""What every training command does once its configuration is found good: plan, restore or
initialise, compile, train.
"""

import concurrent.futures
import functools
import os
import sys

import jax

from launch.cluster import flags as cluster_flags
from launch.console.folders import prepare_workdir
from launch.console.progress import Progress, say
from launch.trainer import hosts, identity, lowering, plan, previews, setup, starting
from launch.trainer.evaluation import Evaluation
from launch.trainer.setup import Setup
from launch.trainer.specs import RunSpec
from sam3d_jax.training import agreement, compilation, loop
from sam3d_jax.training.best import Best
from sam3d_jax.training.checkpointer import Checkpointer
from sam3d_jax.training.ledger import Ledger
from sam3d_jax.training.preemption import StopFlag
from sam3d_jax.training.watchdog import Watchdog


def run(spec: RunSpec, stop: StopFlag) -> None:
  """Trains as configured. Everything that can be wrong with the configuration is found before a
  device is touched. A dry run is `launch.trainer.rehearsal`.
  """
  # What the configuration alone can get wrong.
  config = spec.config
  setup.read(config)

  # Every process of the job, with one configuration.
  workdir = prepare_workdir(spec.workdir)
  ledger = Ledger(workdir / "goodput.jsonl")
  hosts.connect(spec.hosts)
  with hosts.only_job(workdir):
    before = starting.agree_with_run(config, workdir)
    hosts.check_same_config(config)

    # With the same data and the same code for them, everywhere and as before.
    reads = agreement.together(functools.partial(identity.of, config))
    identity.check_same_everywhere(reads)
    if before is not None:
      identity.check_same_data(before["lineage"], before["step"], reads, config, workdir)

    # The plan, and then the work.
    prepare = functools.partial(setup.prepare, config, workdir)
    prepared = agreement.together(prepare)
    lowering.check_backends(prepared)
    print(plan.text(prepared), flush=True)
    recorded(prepared, reads, ledger, stop)


def recorded(setup: Setup, reads: identity.Identity, ledger: Ledger, stop: StopFlag) -> None:
  """Trains under the watchdog, with the beginning and the end in the ledger."""
  # One process writes for all.
  ledger.write = jax.process_index() == 0
  ledger.record(
    "begin",
    hosts=jax.process_count(),
    devices=jax.device_count(),
    environment=cluster_flags.recorded(os.environ),
  )
  # Whatever ends the run is recorded; a process that is killed leaves no such row.
  with Watchdog(ledger, setup.workdir, setup.watchdog, host=jax.process_index()):
    try:
      train(setup, reads, ledger, stop)
    finally:
      error_type = sys.exc_info()[0]
      ledger.record("end", outcome=getattr(error_type, "__name__", "done"))


def train(setup: Setup, reads: identity.Identity, ledger: Ledger, stop: StopFlag) -> None:
  """Restores or initialises, compiles and runs the loop."""
  config = setup.config

  # Where it starts.
  checkpointer = Checkpointer(setup.workdir, keep=config.checkpoint.keep)
  with ledger.phase("restore"):
    state, lineage, setup = starting.starting_state(setup, checkpointer, reads)
  first = int(state.step)
  best = make_best(setup, checkpointer, first)
  if best is not None and best.over:
    print(f"already trained: {best.text()} up to step {first}, saved in {setup.workdir}")
    checkpointer.close()
    return
  if first >= config.steps:
    print(f"already trained: step {first} of {config.steps} is saved in {setup.workdir}")
    checkpointer.close()
    return

  # The programs.
  with ledger.phase("compile"):
    lowered = lowering.step(setup)
    program = compilation.fingerprint(lowered)
    hosts.check_same_program("the training step", program)
    # Beside each other: much of a compilation is the work of one thread.
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compile") as pool:
      compiling = pool.submit(compilation.compiled, lowered, "the training step", say)
      evaluation = make_evaluation(setup)
      compiled = compiling.result()
    checkpointer.prepare(state)

  # What the loop is given.
  loop_config = loop.LoopConfig(
    steps=config.steps,
    batch_size=config.batch_size,
    log_every=config.log.every,
    checkpoint_every=config.checkpoint.every,
    eval_every=config.eval.every,
    wandb=config.log.wandb,
  )
  meta = {
    "config": config.to_dict(),
    "lineage": lineage,
    "params": {path: list(x.shape) for path, x in setup.param_shapes.items()},
    "program": program,
  }
  job = loop.Job(
    cfg=loop_config,
    optim=setup.optim,
    guard=setup.guard,
    workdir=setup.workdir,
    mesh=setup.mesh,
    step_fn=lowering.bind(compiled, config),
    batches=setup.train_loader.iterate,
    counters=setup.train_loader.counters,
    evaluation=evaluation,
    progress=Progress,
    tell=say,
    best=best,
    flops_per_sample=plan.model_flops(setup),
    meta=meta,
  )

  # For the ledger, training starts here.
  ledger.step = first
  ledger.record("start", damaged=checkpointer.bad_steps)
  say(f"ready for the first step after {ledger.text()}")
  say(f"curves and pictures: tensorboard --logdir {setup.workdir} (pip install tensorboard)")
  try:
    with ledger.phase("other"):
      state = loop.train(job, state, checkpointer, ledger, stop)
  finally:
    checkpointer.close()
  if best is not None:
    print(f"{best.text()}; step {best.step} is what is read from {setup.workdir}")
  print(f"trained to step {int(state.step)}; checkpoints and metrics are in {setup.workdir}")


def make_best(setup: Setup, checkpointer: Checkpointer, first: int) -> Best | None:
  """What a run that is to stop early knows of its best state at step `first`; None for others."""
  if setup.stop_rule is None:
    return None
  best = Best(setup.stop_rule, setup.workdir)
  best.resume(first)
  checkpointer.keep_best(best.step)
  return best


def make_evaluation(setup: Setup) -> Evaluation | None:
  """The compiled evaluation of a run, None if it has none."""
  if setup.eval_loader is None:
    return None
  evaluation = Evaluation(setup, previews.make(setup))
  evaluation.compile(setup.abstract_state)
  return evaluation
