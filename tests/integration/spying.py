"""A ``dev`` manager that tells its secrets: ``-m tests.integration.spying DIR FILE`` (each key in hex, a line each)."""

from __future__ import annotations

import sys

from manager_vm import __main__, crypto
from manager_vm.crypto import Key


def main() -> int:
    directory, secrets = sys.argv[1:]
    made = Key.__init__

    def told(self: Key, secret: bytes) -> None:
        made(self, secret)
        with open(secrets, "a") as file:
            print(secret.hex(), file=file)

    Key.__init__ = told  # type: ignore[method-assign]
    assert crypto.Key is Key
    return __main__.main(["dev", directory])


if __name__ == "__main__":
    sys.exit(main())
