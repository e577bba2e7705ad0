"""Runs programs with limits, and never leaves one behind.

launcher = SubprocessLauncher()
process = await launcher.start(Launch("replica-1", [sys.executable, "-m", "services.deployment.replica"], {"TOKEN": token}))
exit = await process.wait()
"""

from libs.launcher.identity import handle_of, is_known_dead, runs_still, signature
from libs.launcher.in_memory import InMemoryLauncher, InMemoryProcess
from libs.launcher.keeper import Keeper
from libs.launcher.launcher import Exit, Launch, Launcher, LaunchError, Process
from libs.launcher.local import Subprocess, SubprocessLauncher
from libs.launcher.opening import LauncherSettings, open_launcher

__all__ = [
    "Exit",
    "InMemoryLauncher",
    "InMemoryProcess",
    "Keeper",
    "Launch",
    "LaunchError",
    "Launcher",
    "LauncherSettings",
    "Process",
    "Subprocess",
    "SubprocessLauncher",
    "handle_of",
    "is_known_dead",
    "open_launcher",
    "runs_still",
    "signature",
]
