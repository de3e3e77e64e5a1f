"""DPDK ports: a DPDK device behind the same Attachment as an interface.

device.py plugs devices in and out, in the right namespace; attachment.py is the port. The
compiled side is imported when the first device is opened.
"""

from appliance.dpdk.attachment import DpdkAttachment, attachment_of
from appliance.dpdk.device import Device, is_pci

__all__ = ["Device", "DpdkAttachment", "attachment_of", "is_pci"]
