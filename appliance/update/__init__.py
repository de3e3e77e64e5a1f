"""The image's versions: which one runs, whether it is proven, the next one, and the way back.

    gate.py       is this boot a good one? packets through the data path, asked once at each boot
    slots.py      what is on the disk: versions, tries left, room
    install.py    `openclaw update DIR`: refuse, or write the other slot

The work on the disk is systemd-sysupdate's, the counting of boots systemd-boot's.
"""

from appliance.update.install import install

__all__ = ["install"]
