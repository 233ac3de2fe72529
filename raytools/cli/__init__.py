"""The command line. Each command parses, calls one function, prints; no logic lives here.

A command group is a module of its own and is imported only when it is used, so that
`raytools --help` and `raytools config check` answer at once.
"""

from __future__ import annotations
