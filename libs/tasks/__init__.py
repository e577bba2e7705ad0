"""Celery, private to a service: messages that make work start sooner.

A message is a hint: the row that describes the work, with its lease, is the truth. Losing a message delays, doubling one does nothing.
"""

from libs.tasks.queue import NORMAL, URGENT, TaskQueue
from libs.tasks.worker import Worker

__all__ = ["NORMAL", "URGENT", "TaskQueue", "Worker"]
