import pytest

from tests.support import tiny_dataset
from tests.support.reading import COUNT


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
  return tiny_dataset.write_dataset(tmp_path_factory.mktemp("data") / "a", COUNT, shards=3)


@pytest.fixture(scope="package")
def other_folder(tmp_path_factory):
  return tiny_dataset.write_dataset(tmp_path_factory.mktemp("data") / "b", 10, first=100)
