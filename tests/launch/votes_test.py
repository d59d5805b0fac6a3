"""Files of people's choices, as spreadsheets save them."""

import pytest

from launch.scoring import views
from sam3d_jax.errors import InputError

PLAIN = "left,right,outcome\na,b,left\nb,a,right\na,b,equal\n"


@pytest.mark.parametrize(
  "content",
  [
    PLAIN.encode(),
    PLAIN.encode("utf-8-sig"),
    PLAIN.encode("utf-16"),
    PLAIN.replace(",", ";").replace("\n", "\r\n").encode(),
    PLAIN.replace("\n", ",,\n").encode(),
  ],
)
def test_votes_read_alike_however_a_spreadsheet_saved_them(tmp_path, content):
  path = tmp_path / "votes.csv"
  path.write_bytes(content)
  votes = [(vote.left, vote.right, vote.outcome) for vote in views.read_votes(path)]
  assert votes == [("a", "b", "left"), ("b", "a", "right"), ("a", "b", "equal")]


@pytest.mark.parametrize("content", [b"left,right,outcome\na,b,won\n", b"a\x00,b", b"", b"x\ny\n"])
def test_what_is_no_vote_is_named(tmp_path, content):
  path = tmp_path / "votes.csv"
  path.write_bytes(content)
  with pytest.raises(InputError, match=r"votes\.csv"):
    views.read_votes(path)


def test_field_votes_read_as_without_their_mark(shared_dir):
  field = shared_dir / "field" / "tables-with-bom"
  if not field.is_dir():
    pytest.skip(f"{field} does not exist")
  assert len(views.read_votes(field / "votes_bom.csv")) == 3
  assert len(views.read_votes(field / "votes_semi.csv")) == 1
