"""`python -m diffreg`, which torchrun starts as `torchrun ... -m diffreg train CONFIG`."""

import sys

from diffreg.cli.main import main

sys.exit(main())
