"""One readable training script per self-supervised method."""

import sys

from jepa_monitor._extras import missing_of

# `python -m` imports this first, while "-m" stands for the path of the recipe that it has yet to find:
# before the recipe's own imports fail, one after the other, each with a traceback.
if sys.argv[:1] == ["-m"] and (missing := missing_of("this recipe", "recipes")) is not None:
    sys.exit(str(missing))
