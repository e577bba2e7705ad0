"""A client of a cluster's API server, and in words why it does not answer. Knows no resource of it.

Imported only where a cluster is spoken with: what is below it takes 20 MB.
"""

from libs.kubernetes.client import UNREACHED, open_client, words

__all__ = ["UNREACHED", "open_client", "words"]
