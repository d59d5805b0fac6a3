"""`python -m launch.cluster`."""

from launch.cluster.command import main

raise SystemExit(main())
