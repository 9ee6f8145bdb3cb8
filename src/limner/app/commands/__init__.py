"""One module per command: a class ``Options`` and ``run(options, console) -> int``.

A module with several commands (``limner models pull``) has a pair ``PullOptions``, ``run_pull`` for
each.  Modules here
import no torch at their top, so that ``limner COMMAND --help`` stays instant.
"""
