"""What all processes of the platform have: the settings, the telemetry, the signs of life and the end on a signal.

Knows components; nothing of what they do.
"""

from libs.process.alive import Alive
from libs.process.run import run
from libs.process.settings import ProcessSettings

__all__ = ["Alive", "ProcessSettings", "run"]
