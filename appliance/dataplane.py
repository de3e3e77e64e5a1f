"""The one doorway to the compiled data plane: everything else imports cython_ext through here.

Owns no code. Modules are named here so that a change of the compiled side has one place to land.
"""

from __future__ import annotations

from cython_ext import bpf, capture_file, parser, pcap

__all__ = ["bpf", "capture_file", "parser", "pcap"]
