"""The parser as the kernel runs it: compiled by bcc, verified, and run over the captures.

The program puts its struct oc_packet and the management class in front of the packet, where
BPF_PROG_TEST_RUN gives them back; they must be byte for byte what the same text says in user space.
"""

from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings

from appliance.capture import read_capture
from appliance.dataplane import bpf, parser
from appliance.steering.compiler import compile_functions
from tests.parser import crafted

pytestmark = pytest.mark.root

ETHERNET = 1
TEST_RUN_MIN, TEST_RUN_MAX = 14, 3000   # what the kernel runs: a header, and one page less its room
RESULT_BYTES = 32                       # 26 of struct oc_packet, 4 of the class, 2 of filling
# Steering needs room for 256 rules below the verifier's million; the parser takes 15,000 on Linux
# 6.18, and kept 750,000 before its cursor was made forgettable.
VERIFIED_MAX = 60_000

PROGRAM = """
#include <uapi/linux/bpf.h>
#include "openclaw_parse.h"

int parse_in_kernel(struct xdp_md *ctx)
{
	struct oc_packet packet;
	unsigned int class;
	unsigned char *to;

	int layer = oc_parse((void *)(long)ctx->data, (void *)(long)ctx->data_end, &packet);
	class = oc_management(&packet);
	if (bpf_xdp_adjust_head(ctx, -32))
		return XDP_ABORTED;
	to = (void *)(long)ctx->data;
	if (to + 32 > (unsigned char *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(to, &packet, sizeof packet);
	__builtin_memcpy(to + 28, &class, sizeof class);
	return 16 + layer;
}
"""


@pytest.fixture(scope="module")
def program():
    code = compile_functions(PROGRAM, ["parse_in_kernel"])["parse_in_kernel"]
    with closing(bpf.Program("parse", code)) as loaded:
        yield loaded


def in_kernel(program, packet):
    """(layer, row of the table, management class)"""
    returned, data = program.test_run(packet, room=RESULT_BYTES)
    assert bytes(data[RESULT_BYTES:]) == bytes(packet), "the packet itself is left alone"
    row = np.frombuffer(data[:parser.PACKET_DTYPE.itemsize], parser.PACKET_DTYPE)[0]
    return returned - 16, row, int.from_bytes(data[28:32], "little")


def test_the_kernel_finds_in_every_packet_of_the_captures_what_user_space_finds(captures, program):
    compared, seen = 0, set()
    for path in sorted(captures.rglob("*.pcap*")):
        capture = read_capture(path)
        if capture.link_type != ETHERNET:
            continue
        table = parser.parse_many(capture.data, capture.offsets, capture.lengths)
        classes = parser.management(table)
        for index, packet in enumerate(capture):
            head = bytes(packet[:128])
            if not TEST_RUN_MIN <= len(packet) <= TEST_RUN_MAX or (head, len(packet)) in seen:
                continue
            seen.add((head, len(packet)))
            layer, row, management = in_kernel(program, packet)
            where = f"{path.name} packet {index + 1}"
            assert row.tobytes() == table[index].tobytes(), where
            assert management == classes[index], where
            assert layer == parser.parse(packet).layer, where
            compared += 1
    assert compared > 100, "the captures hold no packets: nothing was compared"


@settings(max_examples=400, deadline=None, print_blob=True)
@given(frame=crafted.frames())
def test_the_kernel_parses_every_combination_of_headers_as_user_space_does(program, frame):
    packet = np.frombuffer(frame.packet, np.uint8)
    table = parser.parse_many(packet, np.zeros(1, np.uint64), np.array([len(packet)], np.uint32))
    _, row, management = in_kernel(program, packet)
    assert row.tobytes() == table[0].tobytes() and management == parser.management(table)[0]


def test_the_verifier_walks_few_instructions_of_the_parser(program):
    assert program.info["verified"] < VERIFIED_MAX
