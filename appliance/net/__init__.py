"""The host's network: namespaces, interfaces, settings that are taken back, labs.

The only package that speaks netlink and ethtool. It knows nothing of XDP programs or AF_XDP
sockets; those who do call `in_netns` to work where the interface is.
"""

from appliance.net import lab
from appliance.net.interface import InterfaceInfo, interface, interfaces, link_statistics
from appliance.net.lab import Lab
from appliance.net.link import Link
from appliance.net.namespace import in_netns, inside, namespaces
from appliance.net.pause import Pause, pause_of
from appliance.net.settings import Settings, recover

__all__ = [
    "InterfaceInfo",
    "Lab",
    "Link",
    "Pause",
    "Settings",
    "in_netns",
    "inside",
    "interface",
    "interfaces",
    "lab",
    "link_statistics",
    "namespaces",
    "pause_of",
    "recover",
]
