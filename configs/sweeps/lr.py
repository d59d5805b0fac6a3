r"""Learning rate and length of the average: six trials of the tiny Geometry model.

    python -m launch.sweep --sweep configs/sweeps/lr.py --workdir sweeps/lr \
        --set data.mixture.iso_3do.path=DATA [--parallel 2] \
        [--base configs/pretrain_geometry.py:fake]

The learning rate is an input of the compiled step: the trials of one `optim.ema` share one program.
"""


def get_sweep() -> dict:
  return {
    "command": "pretrain",  # launch.<command>
    "config": "configs/pretrain_geometry.py:tiny",
    "overrides": {"steps": 400, "eval.every": 100, "checkpoint.every": 200},  # of every trial
    "space": [
      {"product": {"optim.lr": (5e-4, 2e-3, 8e-3), "optim.ema": ((0.99,), (0.995,))}},
    ],
    "metric": "eval/loss",  # of metrics.jsonl
    "goal": "min",
    "pick": "last",  # value that ranks a trial: last or best
  }
