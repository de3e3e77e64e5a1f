"""The image's bill of materials: mkosi's package manifest as CycloneDX 1.5 JSON.

Owns the translation only. Nothing depends on when or where it runs: equal images, equal bills.
"""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from urllib.parse import quote


def bill(manifest: dict, version: str) -> dict:
    components = [
        {
            "type": "library",
            "bom-ref": f"{one['name']}@{one['version']}:{one['architecture']}",
            "name": one["name"],
            "version": one["version"],
            "purl": f"pkg:deb/debian/{quote(one['name'])}@{quote(one['version'], safe='')}"
                    f"?arch={one['architecture']}&distro=debian-13",
        }
        for one in sorted(manifest["packages"], key=lambda one: (one["name"], one["architecture"]))
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_DNS, f'openclaw-image-{version}')}",
        "version": 1,
        "metadata": {
            "component": {"type": "operating-system", "name": "openclaw", "version": version}
        },
        "components": components,
    }


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: sbom.py MANIFEST VERSION")
    json.dump(bill(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]), sys.stdout, indent=1)
    print()
