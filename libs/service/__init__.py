"""What a service is made of, so that a new one is a folder and a page of wiring.

Knows every lib; knows no service.
"""

from libs.rpc import IdentitySettings, PeerSettings
from libs.service.command import command
from libs.service.edge import Edge
from libs.service.kit import Kit
from libs.service.settings import ServiceSettings

__all__ = ["Edge", "IdentitySettings", "Kit", "PeerSettings", "ServiceSettings", "command"]
