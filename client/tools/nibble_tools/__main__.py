"""python -m nibble_tools report|sweep|prepare ARGUMENTS..."""

import signal
import sys
from importlib import import_module

from nibble_tools.failure import Failure

TOOLS = ("report", "sweep", "prepare")


def main() -> int:
    name, arguments = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if name not in TOOLS:
        print(f"nibble: found tool {name!r}, expected one of {', '.join(TOOLS)}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        import_module(f"nibble_tools.{name}").main(arguments)
    except (Failure, OSError) as error:
        print(f"nibble: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nibble: stopped", file=sys.stderr)
        return 130
    return 0


sys.exit(main())
