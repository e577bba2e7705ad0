"""The worker's part: takes jobs that have an allocation, runs one process an attempt, and writes down what it tells."""

from services.training.supervisor.supervisor import Supervisor
from services.training.supervisor.tools import Tools

__all__ = ["Supervisor", "Tools"]
