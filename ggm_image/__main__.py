"""``python -m ggm_image`` is ``ggm-image``."""

import sys

from ggm_image.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
