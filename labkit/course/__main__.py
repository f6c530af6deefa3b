"""`python -m labkit.course`."""

import sys

from labkit.course.running import _main

if __name__ == "__main__":
    sys.exit(_main())
