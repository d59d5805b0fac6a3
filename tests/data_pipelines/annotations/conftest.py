"""What the tests of annotations share."""

import pathlib

import pytest

from data_pipelines.annotations import synthetic
from tests.support.annotated import SMALL


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  """Six synthetic items: the fourth is for an artist, the best of the fifth comes from another
  generator.
  """
  root = tmp_path_factory.mktemp("annotated")
  for index in range(SMALL.count):
    synthetic.write_item(root / str(index), index, SMALL)
  return root
