"""How the scripts end: with the status of their work, and with one line instead of a traceback where the input is bad."""

from __future__ import annotations

import sys
from collections.abc import Callable

from limner.errors import LimnerError


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's work and end the process with its status, or with 1 and the reason."""
    try:
        status = main()
    except LimnerError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if not error.filename:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}")
    sys.exit(status)
