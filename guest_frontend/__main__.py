"""``python -m guest_frontend {device,pipe,socket,qemu} CHANNEL``."""

import sys

from guest_frontend.cli import main

sys.exit(main())
