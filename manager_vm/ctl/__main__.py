"""``python -m manager_vm.ctl``: vtpmctl without an installed entry point."""

import sys

from manager_vm.ctl.main import main

sys.exit(main())
