/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Fuzz target of the packet parser (xdp/openclaw_parse.h), for libFuzzer with ASan and UBSan. Every
 * input is one frame in a heap block of exactly its size, so that a byte read too far is found. It
 * asserts what the parser promises of its result, and that a frame cut short says nothing that the
 * whole one does not say. It owns no corpus: seeds.py makes one from captures for each run.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "openclaw_parse.h"

/* Shorter frames tried for each input. With OPENCLAW_EVERY_LENGTH in the environment all are: right
 * for going through packets once, and 100 times too slow for fuzzing. */
#define CUTS 4

#define HOLDS(condition)                                                                 \
	do {                                                                             \
		if (!(condition)) {                                                      \
			fprintf(stderr, "line %d does not hold: %s\n", __LINE__, #condition); \
			abort();                                                         \
		}                                                                        \
	} while (0)

static unsigned int be16(const uint8_t *b)
{
	return b[0] * 256u + b[1];
}

static void check_link(const struct oc_packet *p, const uint8_t *frame, size_t size, int layer)
{
	unsigned int i;

	HOLDS((layer == OC_LAYER_NONE) == (size < 14));
	HOLDS((layer >= OC_LAYER_NETWORK) == (p->l3_offset != 0));
	HOLDS((layer == OC_LAYER_TRANSPORT) == (p->l4_offset != 0));
	HOLDS(p->vlan_count <= OC_VLAN_MAX && p->mpls_count <= OC_MPLS_MAX);
	for (i = 0; i < OC_VLAN_MAX; i++)
		HOLDS(p->vlan[i] == (i < p->vlan_count ? be16(frame + 14 + 4 * i) : 0));
	if (size >= 14)
		HOLDS(p->eth_type == be16(frame + 12 + 4 * p->vlan_count));
	if (p->mpls_count)
		HOLDS(p->eth_type == OC_ETH_MPLS || p->eth_type == OC_ETH_MPLS_UPSTREAM);
	if (p->l3_offset) {
		HOLDS(p->l3_offset == 14 + 4 * p->vlan_count + 4 * p->mpls_count);
		HOLDS(p->l3_offset < size);
		if (p->mpls_count)
			HOLDS(frame[p->l3_offset - 2] & 1);
	}
}

static void check_network(const struct oc_packet *p, const uint8_t *frame, size_t size)
{
	const uint8_t *ip = frame + p->l3_offset;

	HOLDS(p->ip_version == 0 || p->ip_version == 4 || p->ip_version == 6);
	if (!(p->flags & OC_PKT_FRAGMENT))
		HOLDS(!(p->flags & OC_PKT_FIRST_FRAGMENT));
	if (p->flags & OC_PKT_IP_OPTIONS)
		HOLDS(p->ip_version == 4);
	if (p->flags & OC_PKT_EXT_HEADERS)
		HOLDS(p->ip_version == 6);
	if (!p->ip_version) {
		HOLDS(!p->ip_proto && !p->l4_offset && !p->payload_offset && !p->icmp_type);
		return;
	}
	HOLDS(p->l3_offset && ip[0] >> 4 == p->ip_version);
	HOLDS(p->l3_offset + (p->ip_version == 4 ? 20u : 40u) <= size);
	if (p->ip_version == 4) {
		HOLDS((ip[0] & 15) >= 5 && p->ip_proto == ip[9]);
		HOLDS(!(p->flags & OC_PKT_IP_OPTIONS) == ((ip[0] & 15) == 5));
		if (p->l4_offset)
			HOLDS(p->l4_offset == p->l3_offset + (ip[0] & 15) * 4);
	} else if (p->l4_offset && !(p->flags & OC_PKT_EXT_HEADERS)) {
		HOLDS(p->l4_offset == p->l3_offset + 40 && p->ip_proto == ip[6]);
	}
}

static void check_transport(const struct oc_packet *p, const uint8_t *frame, size_t size)
{
	unsigned int ip_bytes;

	if ((p->flags & OC_PKT_FRAGMENT) && !(p->flags & OC_PKT_FIRST_FRAGMENT))
		HOLDS(!p->l4_offset);
	if (!p->has_ports)
		HOLDS(!p->sport && !p->dport);
	if (p->payload_offset)
		HOLDS(p->payload_offset >= p->l3_offset + 20 && p->payload_offset <= size);
	if (!p->l4_offset) {
		HOLDS(!p->has_ports && !p->icmp_type);
		return;
	}
	HOLDS(p->l4_offset >= p->l3_offset + 20 && p->l4_offset < size);
	if (p->payload_offset)
		HOLDS(p->payload_offset >= p->l4_offset + 4);
	if (p->icmp_type)
		HOLDS(p->icmp_type == frame[p->l4_offset] && !p->has_ports);
	if (!p->has_ports)
		return;
	HOLDS(p->has_ports == 1);
	HOLDS(p->l4_offset + 4u <= size);
	HOLDS(p->ip_proto == 6 || p->ip_proto == 17 || p->ip_proto == 132);
	HOLDS(p->sport == be16(frame + p->l4_offset));
	HOLDS(p->dport == be16(frame + p->l4_offset + 2));
	ip_bytes = be16(frame + p->l3_offset + (p->ip_version == 4 ? 2 : 4));
	if (ip_bytes || (p->ip_version == 6 && frame[p->l3_offset + 6] != 0))
		HOLDS(p->l4_offset + 4u <= p->l3_offset + ip_bytes + (p->ip_version == 4 ? 0 : 40));
}

static void check_management(const struct oc_packet *p)
{
	unsigned int class = oc_management(p);

	HOLDS((class & (class - 1)) == 0 && class <= OC_MGMT_SSH);
	HOLDS((class == OC_MGMT_ARP) == (p->eth_type == 0x0806));
	if (class == OC_MGMT_ND)
		HOLDS(p->ip_version == 6 && p->icmp_type >= 133 && p->icmp_type <= 137);
	if (class == OC_MGMT_SSH)
		HOLDS(p->ip_proto == 6 && p->has_ports);
	if (class == OC_MGMT_DHCP)
		HOLDS(p->ip_proto == 17 && p->has_ports);
}

/* Parses a copy in a block of exactly `size` bytes; what *out held before must not matter. */
static int parse_exactly(const uint8_t *frame, size_t size, struct oc_packet *out)
{
	uint8_t *copy = malloc(size);
	struct oc_packet other;
	int layer;

	if (size)
		memcpy(copy, frame, size);
	memset(out, 0x00, sizeof *out);
	memset(&other, 0xff, sizeof other);
	layer = oc_parse(copy, copy + size, out);
	HOLDS(oc_parse(copy, copy + size, &other) == layer);
	HOLDS(memcmp(out, &other, sizeof other) == 0);
	check_link(out, copy, size, layer);
	check_network(out, copy, size);
	check_transport(out, copy, size);
	check_management(out);
	free(copy);
	return layer;
}

static void check_cut(const struct oc_packet *whole, int layer, const struct oc_packet *cut,
		      int cut_layer)
{
	HOLDS(cut_layer <= layer);
	HOLDS(cut->vlan_count <= whole->vlan_count && cut->mpls_count <= whole->mpls_count);
	if (cut->l3_offset)
		HOLDS(cut->l3_offset == whole->l3_offset);
	if (cut->ip_version)
		HOLDS(cut->ip_version == whole->ip_version);
	if (cut->l4_offset)
		HOLDS(cut->l4_offset == whole->l4_offset && cut->ip_proto == whole->ip_proto);
	if (cut->has_ports)
		HOLDS(whole->has_ports && cut->sport == whole->sport && cut->dport == whole->dport);
	if (cut->payload_offset)
		HOLDS(cut->payload_offset == whole->payload_offset);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int every_length = -1;
	struct oc_packet whole, cut;
	int layer = parse_exactly(data, size, &whole);
	size_t length = size;
	unsigned int i, mix = size ? data[size - 1] * 2654435761u + (unsigned int)size : 0;

	if (every_length < 0)
		every_length = getenv("OPENCLAW_EVERY_LENGTH") != NULL;
	for (i = 0; (i < CUTS || every_length) && length; i++) {
		length = i && !every_length ? (mix >> (8 * i)) % length : length - 1;
		check_cut(&whole, layer, &cut, parse_exactly(data, length, &cut));
	}
	return 0;
}
