"""The XDP program that a veth peer needs: it passes everything.

XDP_REDIRECT and XDP_TX into a veth, and native AF_XDP transmission, deliver only when the other end
runs XDP itself. Owns that program's link; the interface is the caller's.
"""

from __future__ import annotations

from appliance.dataplane import bpf
from appliance.steering import compiler, loader
from appliance.steering.attach import attach
from appliance.steering.program import XDP_DIRECTORY

FUNCTION = "oc_peer"


class Peer:
    """A pass program on an interface, until close()."""

    def __init__(self, program: bpf.Program, link: bpf.Link, mode: str) -> None:
        self._program, self._link, self.mode = program, link, mode

    def close(self) -> None:
        self._link.close()
        self._program.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def attach_pass(ifindex: int, mode: str = "native") -> Peer:
    """Attaches inside the caller's network namespace. The program takes jumbo packets."""
    text = (XDP_DIRECTORY / "peer.bpf.c").read_text(encoding="ascii")
    code = compiler.compile_functions(text, [FUNCTION])[FUNCTION]
    program = loader.load("oc_peer", code, {}, frags=True)
    try:
        link, granted = attach(program, ifindex, mode)
    except BaseException:
        program.close()
        raise
    return Peer(program, link, granted)
