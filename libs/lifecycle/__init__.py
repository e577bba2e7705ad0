"""Start, run again and again, drain and stop: how every process of the platform lives and ends.

Knows nothing of what the components do.
"""

from libs.lifecycle.lifecycle import Component, Lifecycle
from libs.lifecycle.loop import Loop
from libs.lifecycle.rounds import Rounds, Turn

__all__ = ["Component", "Lifecycle", "Loop", "Rounds", "Turn"]
