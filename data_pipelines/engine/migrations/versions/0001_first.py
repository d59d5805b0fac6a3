"""The first tables."""

from alembic import op
import sqlalchemy as sa

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
  """Makes the tables of photos, objects, candidates, tasks, people, decisions and events."""
  op.create_table(
    "annotator",
    sa.Column("id", sa.Integer(), nullable=False),
    sa.Column("name", sa.String(length=200), nullable=False),
    sa.Column("role", sa.String(length=20), nullable=False),
    sa.Column("token_sha256", sa.String(length=64), nullable=True),
    sa.Column("active", sa.Boolean(), nullable=False),
    sa.PrimaryKeyConstraint("id"),
    sa.UniqueConstraint("name"),
    sa.UniqueConstraint("token_sha256"),
  )
  op.create_table(
    "photo",
    sa.Column("id", sa.Integer(), nullable=False),
    sa.Column("name", sa.String(length=200), nullable=False),
    sa.Column("image", sa.String(length=64), nullable=False),
    sa.Column("pointmap", sa.String(length=64), nullable=True),
    sa.Column("width", sa.Integer(), nullable=False),
    sa.Column("height", sa.Integer(), nullable=False),
    sa.Column("camera", sa.JSON(), nullable=True),
    sa.Column("license", sa.String(length=100), nullable=False),
    sa.PrimaryKeyConstraint("id"),
    sa.UniqueConstraint("name"),
  )
  op.create_table(
    "object",
    sa.Column("id", sa.Integer(), nullable=False),
    sa.Column("photo_id", sa.Integer(), nullable=False),
    sa.Column("number", sa.Integer(), nullable=False),
    sa.Column("mask", sa.String(length=64), nullable=False),
    sa.ForeignKeyConstraint(
      ["photo_id"],
      ["photo.id"],
    ),
    sa.PrimaryKeyConstraint("id"),
    sa.UniqueConstraint("photo_id", "number"),
  )
  op.create_index(op.f("ix_object_photo_id"), "object", ["photo_id"], unique=False)
  op.create_table(
    "candidate",
    sa.Column("id", sa.Integer(), nullable=False),
    sa.Column("object_id", sa.Integer(), nullable=False),
    sa.Column("iteration", sa.Integer(), nullable=False),
    sa.Column("name", sa.String(length=200), nullable=False),
    sa.Column("generator", sa.String(length=200), nullable=False),
    sa.Column("kind", sa.String(length=20), nullable=False),
    sa.Column("mesh", sa.String(length=64), nullable=False),
    sa.Column("suffix", sa.String(length=10), nullable=False),
    sa.Column("shown", sa.String(length=64), nullable=False),
    sa.Column("shown_suffix", sa.String(length=10), nullable=False),
    sa.Column("latents", sa.String(length=64), nullable=True),
    sa.Column("pose", sa.JSON(), nullable=True),
    sa.Column("license", sa.String(length=100), nullable=False),
    sa.ForeignKeyConstraint(
      ["object_id"],
      ["object.id"],
    ),
    sa.PrimaryKeyConstraint("id"),
    sa.UniqueConstraint("object_id", "iteration", "name"),
  )
  op.create_index(op.f("ix_candidate_object_id"), "candidate", ["object_id"], unique=False)
  op.create_table(
    "task",
    sa.Column("id", sa.Integer(), nullable=False),
    sa.Column("stage", sa.String(length=20), nullable=False),
    sa.Column("state", sa.String(length=20), nullable=False),
    sa.Column("priority", sa.Integer(), nullable=False),
    sa.Column("photo_id", sa.Integer(), nullable=False),
    sa.Column("object_id", sa.Integer(), nullable=True),
    sa.Column("iteration", sa.Integer(), nullable=False),
    sa.Column("copy", sa.Integer(), nullable=False),
    sa.Column("seed", sa.Integer(), nullable=False),
    sa.Column("lease_owner", sa.Integer(), nullable=True),
    sa.Column("lease_until", sa.Float(), nullable=False),
    sa.Column("lease_epoch", sa.Integer(), nullable=False),
    sa.CheckConstraint(
      "stage in ('mask', 'shape', 'texture', 'artist', 'pose', 'comparison')", name="stage"
    ),
    sa.CheckConstraint("state in ('waiting', 'open', 'done', 'rejected', 'skipped')", name="state"),
    sa.ForeignKeyConstraint(
      ["lease_owner"],
      ["annotator.id"],
    ),
    sa.ForeignKeyConstraint(
      ["object_id"],
      ["object.id"],
    ),
    sa.ForeignKeyConstraint(
      ["photo_id"],
      ["photo.id"],
    ),
    sa.PrimaryKeyConstraint("id"),
    sa.UniqueConstraint("stage", "photo_id", "object_id", "iteration", "copy"),
  )
  op.create_index(op.f("ix_task_object_id"), "task", ["object_id"], unique=False)
  op.create_index("task_lease", "task", ["lease_owner", "state"], unique=False)
  op.create_index("task_queue", "task", ["state", "stage", "priority", "id"], unique=False)
  op.create_table(
    "decision",
    sa.Column("id", sa.Integer(), nullable=False),
    sa.Column("key", sa.String(length=100), nullable=False),
    sa.Column("task_id", sa.Integer(), nullable=False),
    sa.Column("kind", sa.String(length=20), nullable=False),
    sa.Column("step", sa.Integer(), nullable=False),
    sa.Column("annotator_id", sa.Integer(), nullable=False),
    sa.Column("epoch", sa.Integer(), nullable=False),
    sa.Column("payload", sa.JSON(), nullable=False),
    sa.Column("milliseconds", sa.Integer(), nullable=True),
    sa.Column("at", sa.Float(), nullable=False),
    sa.ForeignKeyConstraint(
      ["annotator_id"],
      ["annotator.id"],
    ),
    sa.ForeignKeyConstraint(
      ["task_id"],
      ["task.id"],
    ),
    sa.PrimaryKeyConstraint("id"),
    sa.UniqueConstraint("key"),
    sa.UniqueConstraint("task_id", "kind", "step"),
  )
  op.create_index(op.f("ix_decision_annotator_id"), "decision", ["annotator_id"], unique=False)
  op.create_table(
    "event",
    sa.Column("id", sa.Integer(), nullable=False),
    sa.Column("at", sa.Float(), nullable=False),
    sa.Column("annotator_id", sa.Integer(), nullable=True),
    sa.Column("task_id", sa.Integer(), nullable=True),
    sa.Column("kind", sa.String(length=40), nullable=False),
    sa.Column("payload", sa.JSON(), nullable=False),
    sa.ForeignKeyConstraint(
      ["annotator_id"],
      ["annotator.id"],
    ),
    sa.ForeignKeyConstraint(
      ["task_id"],
      ["task.id"],
    ),
    sa.PrimaryKeyConstraint("id"),
  )
  op.create_index(op.f("ix_event_task_id"), "event", ["task_id"], unique=False)
