"""`python -m pysa_convert`: the same as the `pysa-convert` command."""

from __future__ import annotations

import sys

from pysa_convert.cli import main

if __name__ == "__main__":
    sys.exit(main())
