"""``python -m sinkscope``: the command line."""

import sys

from sinkscope.cli import main

sys.exit(main())
