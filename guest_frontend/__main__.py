"""``python -m guest_frontend {device,pipe,socket} CHANNEL``."""

import sys

from guest_frontend.cli import main

sys.exit(main())
