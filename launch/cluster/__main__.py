"""`python -m launch.cluster`."""

import sys

from launch.cluster.command import main

sys.exit(main())
