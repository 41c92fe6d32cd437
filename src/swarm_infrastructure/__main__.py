"""``python -m swarm_infrastructure``: the same as ``swarm``."""

from __future__ import annotations

import sys

from swarm_infrastructure.cli import main

if __name__ == "__main__":
    sys.exit(main())
