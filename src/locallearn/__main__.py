"""``python -m locallearn`` is the command line."""

import sys

from locallearn.cli.main import main

sys.exit(main())
