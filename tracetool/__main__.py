"""`python -m tracetool`."""

import sys

from tracetool.cli import main

sys.exit(main())
