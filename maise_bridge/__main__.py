"""``python -m maise_bridge``."""

from __future__ import annotations

import sys

from maise_bridge.cli import main

if __name__ == "__main__":
    sys.exit(main())
