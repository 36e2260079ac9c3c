"""``python -m jepa_monitor`` is the command ``jepa-monitor``."""

import sys

from jepa_monitor.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
