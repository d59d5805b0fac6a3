"""What is sampled and drawn while a model trains, in one explicit table by the model's name.

A model without an entry has losses on held-out batches and no pictures.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, Protocol

from ml_collections import ConfigDict
import numpy as np

from launch.trainer import evaluation
from sam3d_jax.errors import ConfigError
from sam3d_jax.models import registry


class Preview(Protocol):
  """Samples of one run. `compile` and `dispatch` do not wait for a device; `read` and `write_curve`
  do, in the thread of launch/trainer/evaluation.py.
  """

  def compile(self, params, frozen) -> None:
    """Compiles what `dispatch` runs, for parameters of these shapes."""

  def dispatch(self, params, frozen) -> Any:
    """Starts sampling on the devices; what it returns goes to `read`."""

  def read(self, step: int, sampled: Any) -> tuple[dict[str, float], np.ndarray | None]:
    """Scalars, named `eval/...`, and on the first host a picture (H, W, 3) uint8."""

  def curve(self, params, frozen) -> Any:
    """Starts what is measured once, at the end of the run; None: nothing."""

  def write_curve(self, curve: Any) -> None:
    """Writes down what `curve` started."""


def no_files(config: ConfigDict, autoencoder: str) -> None:
  """Of previews that read no files of their own."""


@dataclasses.dataclass(frozen=True)
class PreviewKind:
  """make: `launch.trainer.setup.Setup` -> Preview. wanted: whether a configuration asks for it.
  check: raises ConfigError if it cannot be had. check_files: (configuration, autoencoder of the
  latents or '' before there are data), raises InputError if the files that it names do not fit.
  """

  make: Callable[[Any], Preview]
  wanted: Callable[[ConfigDict], bool]
  check: Callable[[ConfigDict], None]
  check_files: Callable[[ConfigDict, str], None] = no_files


def has_decoder(config: ConfigDict) -> bool:
  """Shapes are sampled where there is something to decode them with."""
  return bool(config.eval.decoder)


def check_objects(config: ConfigDict) -> None:
  """Held-out objects to sample for are read from shards."""
  if config.data.kind != "shards":
    raise ConfigError(
      f"eval.decoder = {config.eval.decoder!r} needs held-out objects and data.kind = "
      f"{config.data.kind!r} has none; leave it empty"
    )
  if config.eval.objects < 1:
    raise ConfigError(
      f"eval.objects = {config.eval.objects}: with eval.decoder set it must be positive"
    )


PREVIEWS: dict[str, PreviewKind] = {
  "geometry": PreviewKind(
    make=evaluation.Samples,
    wanted=has_decoder,
    check=check_objects,
    check_files=evaluation.check_decoder,
  ),
}


def check(config: ConfigDict) -> None:
  """Raises ConfigError if the configuration asks for samples that cannot be had."""
  # A decoder without anything to decode is a mistake, whatever draws the previews.
  name, decoder = config.model.name, config.eval.decoder
  latents = registry.lookup(name).latents
  if decoder and not latents:
    raise ConfigError(
      f"eval.decoder = {decoder!r}: a {name} has no latents to decode; leave it empty"
    )
  kind = PREVIEWS.get(name)
  if kind is not None and kind.wanted(config):
    kind.check(config)


def check_files(config: ConfigDict, autoencoder: str) -> None:
  """Raises InputError if files that the previews of a configuration read are missing or do not fit.

  autoencoder: digest that the latents of the data carry; '' before there are data.
  """
  kind = PREVIEWS.get(config.model.name)
  if kind is not None and kind.wanted(config):
    kind.check_files(config, autoencoder)


def make(setup) -> Preview | None:
  """The preview of a run, None if it has none."""
  kind = PREVIEWS.get(setup.config.model.name)
  if kind is None or not kind.wanted(setup.config):
    return None
  return kind.make(setup)
