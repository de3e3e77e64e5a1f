"""Writes a seed corpus for the parser's fuzz target: one file per shape of packet in the captures.

A shape is what the parser says of a packet without its ports, so that thousands of packets become
some hundred seeds; with --all every different packet is one. Nothing is committed: the corpus is
made for each run. Without captures a few hand-made frames remain.

usage: seeds.py CORPUS_DIRECTORY CAPTURES_DIRECTORY [--all]
"""

import hashlib
import sys
from pathlib import Path

from appliance.capture import read_capture
from appliance.dataplane import parser
from appliance.errors import OpenClawError

ETHERNET = 1
BYTES_MAX = 512           # headers only: longer seeds slow the fuzzer and add no shape
HAND_MADE = {
    "vlan3-mpls2-ipv4-options-udp": "0000000000010000000000028100000188a8000291000003884700001000"
    "000021404600002000000000401100007f0000017f0000010101010000350044000c0000aabbccdd",
    "ipv6-hop-dest-frag-tcp": "00000000000100000000000286dd6000000000340040"
    "20010db8000000000000000000000001" "20010db8000000000000000000000002"
    "3c00010400000000" "2c00010400000000" "0600000000000001"
    "0016303900000000000000005002000000000000",
}


def packets(captures: Path):
    for path in sorted(captures.rglob("*.pcap*")):
        try:
            capture = read_capture(path)
        except OpenClawError as error:
            print(f"seeds: {error}", file=sys.stderr)
            continue
        if capture.link_type == ETHERNET:
            yield from capture


def shape(packet: bytes) -> object:
    parsed = parser.parse(packet)
    return parsed._replace(sport=None, dport=None, vlan=len(parsed.vlan))


def main(corpus: Path, captures: Path, every: bool) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = {name: bytes.fromhex(text) for name, text in HAND_MADE.items()}
    for packet in packets(captures):
        head = bytes(packet[:BYTES_MAX])
        key = head if every else repr(shape(head)).encode()
        seeds.setdefault(hashlib.sha256(key).hexdigest()[:32], head)
    for name, head in seeds.items():
        (corpus / name).write_bytes(head)
    print(f"seeds: {len(seeds)} in {corpus}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "--all" in sys.argv[3:])
