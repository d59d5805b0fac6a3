r"""Random search over optimiser and loss, two seeds each, where a grid would be too large.

    python -m launch.sweep --sweep configs/sweeps/random_search.py --workdir sweeps/random \
        --set data.mixture.iso_3do.path=DATA

The blocks of `space` multiply: 8 random draws x 2 seeds = 16 trials. In a `zip` block the values
move together.
"""


def get_sweep() -> dict:
  return {
    "command": "pretrain",
    "config": "configs/pretrain_geometry.py:tiny",
    "overrides": {"steps": 400, "eval.every": 100, "checkpoint.every": 200},
    "space": [
      {
        "random": {
          "optim.lr": {"log_uniform": (3e-4, 1e-2)},
          "optim.b2": {"choice": (0.95, 0.99, 0.999)},
          "objective.weights.rotation": {"uniform": (0.05, 0.5)},
          "optim.warmup_steps": {"integer": (10, 100)},
        },
        "trials": 8,
        "seed": 0,
      },
      {"zip": {"seed": (0, 1)}},
    ],
    "metric": "eval/loss",
    "goal": "min",
    "pick": "best",
  }
