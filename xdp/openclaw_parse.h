/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * The packet parser: Ethernet, VLAN, MPLS, IPv4, IPv6, TCP, UDP, SCTP, ICMP. One text for the
 * steering program (bcc), for Cython and for the fuzz target; a bug found in one is mended in all.
 * It says where the headers begin and what the ports are. It owns no memory, includes nothing,
 * reads each byte on its own (no alignment is assumed) and never looks past data_end. It is not a
 * dissector: it checks no checksum, reassembles nothing and looks into no tunnel (GRE, VXLAN, IP
 * in IP), no LLC/SNAP and no ESP. It is longer than a BPF file should be, because one text that
 * includes nothing is what all three compilers can take.
 *
 *   | Ethernet 14 | 0..3 VLAN x 4 | 0..8 MPLS x 4 | IPv4 20..60        | TCP UDP SCTP ICMP |
 *                                                   | IPv6 40 + 0..6 ext |                   |
 *   0                                               l3_offset            l4_offset       payload
 *
 * How it fails: a helper that meets the end of the frame or a value that cannot be returns -1,
 * having set OC_PKT_TRUNCATED, OC_PKT_BOGUS or OC_PKT_TOO_DEEP; what was found before stays in the
 * result. Hence a frame cut short never shows other ports than the whole one, only none.
 *
 * Lengths: bytes after what the IP header says (padding, trailers) are never taken for a transport
 * header. IPv4's length 0 (captures of segmentation offload) and IPv6's in front of a hop-by-hop
 * header (jumbogram) mean "to the end of the frame"; otherwise 0 is 0, as in Linux. In XDP a packet
 * of several frames shows only its first one here: OC_PKT_TRUNCATED says nothing about it there.
 */
#ifndef OPENCLAW_PARSE_H
#define OPENCLAW_PARSE_H

#define OC_VLAN_MAX 3u        /* customer, service and one carrier tag */
#define OC_MPLS_MAX 8u        /* deepest stack of segment routing in common silicon is 8 to 10 */
#define OC_EXT_HEADERS_MAX 6u /* RFC 8200 section 4.1 lists 6 that may precede the upper layer */

/* Flags of struct oc_packet. */
#define OC_PKT_TRUNCATED 0x0001u      /* the frame ends before a header or before the IP length */
#define OC_PKT_BOGUS 0x0002u          /* a field that cannot be: version, ihl, lengths */
#define OC_PKT_TOO_DEEP 0x0004u       /* more tags, labels or extension headers than the limit */
#define OC_PKT_FRAGMENT 0x0008u       /* a fragment of an IP packet (an atomic one is none) */
#define OC_PKT_FIRST_FRAGMENT 0x0010u /* and the first one: it may carry ports */
#define OC_PKT_IP_OPTIONS 0x0020u     /* IPv4 header longer than 20 bytes */
#define OC_PKT_EXT_HEADERS 0x0040u    /* at least one IPv6 extension header */

/* What oc_parse returns: the highest layer whose header begins inside the frame. */
#define OC_LAYER_NONE 0
#define OC_LAYER_LINK 2
#define OC_LAYER_NETWORK 3
#define OC_LAYER_TRANSPORT 4

/* Management protocols, a bit mask. */
#define OC_MGMT_ARP 0x1u
#define OC_MGMT_ND 0x2u   /* ICMPv6 133..137: router and neighbour discovery, redirect */
#define OC_MGMT_DHCP 0x4u /* UDP 67, 68 over IPv4; 546, 547 over IPv6 */
#define OC_MGMT_SSH 0x8u  /* TCP port 22, either side */

/* With a prefix of our own: kernel and libc headers disagree about who defines these. */
#define OC_ETH_IPV4 0x0800u
#define OC_ETH_ARP 0x0806u
#define OC_ETH_VLAN 0x8100u
#define OC_ETH_IPV6 0x86ddu
#define OC_ETH_MPLS 0x8847u
#define OC_ETH_MPLS_UPSTREAM 0x8848u
#define OC_ETH_SERVICE_VLAN 0x88a8u
#define OC_ETH_OLD_QINQ 0x9100u

#define OC_IP_HOP_BY_HOP 0u
#define OC_IP_ICMP 1u
#define OC_IP_TCP 6u
#define OC_IP_UDP 17u
#define OC_IP_ROUTING 43u
#define OC_IP_FRAGMENT 44u
#define OC_IP_AUTHENTICATION 51u
#define OC_IP_ICMPV6 58u
#define OC_IP_NONE 59u
#define OC_IP_DESTINATION 60u
#define OC_IP_SCTP 132u

#define OC_INLINE static inline __attribute__((always_inline, unused))
/* bcc parses for the host and generates for BPF: it never defines __bpf__, but __BPF_TRACING__. */
#if defined(__clang__) && (defined(__bpf__) || defined(__BPF_TRACING__) || defined(__KERNEL__))
#define OC_UNROLL _Pragma("unroll")
#define OC_HIDE(value) __asm__ volatile("" : "+r"(value))
#else
#define OC_UNROLL
#define OC_HIDE(value) (void)(value)
#endif

struct oc_packet {
	unsigned short l3_offset;      /* of the IP or ARP header; 0: none */
	unsigned short l4_offset;      /* of the transport header; 0: none in this packet */
	unsigned short payload_offset; /* behind the transport header, or fragment data */
	unsigned short eth_type;       /* behind the VLAN tags; below 1536 it is an 802.3 length */
	unsigned short vlan[OC_VLAN_MAX]; /* tag control, outermost first; id: & 0xfff */
	unsigned char vlan_count;
	unsigned char mpls_count;
	unsigned char ip_version; /* 4, 6 or 0 */
	unsigned char ip_proto;   /* IPv6: of the last header reached */
	unsigned char icmp_type;  /* valid when l4_offset is and ip_proto is ICMP of its version */
	unsigned char has_ports;  /* 1: sport and dport were in the frame */
	unsigned short sport, dport; /* host order */
	unsigned short flags;        /* OC_PKT_* */
};
_Static_assert(sizeof(struct oc_packet) == 26, "shared by three compilers");

/* The one cursor. Only the helpers below move it. */
struct oc_cursor {
	const unsigned char *pos;
	const unsigned char *start; /* of the frame, then of the IP header: see oc_rebase */
	const unsigned char *end;
	unsigned int base; /* offset of start in the frame */
	unsigned int left; /* bytes that remain by the IP header's own length */
};

OC_INLINE unsigned int oc_be16(const unsigned char *b)
{
	return (unsigned int)b[0] << 8 | b[1];
}

OC_INLINE int oc_stop(struct oc_packet *p, unsigned int flag)
{
	p->flags |= flag;
	return -1;
}

/* How far the cursor is behind `start`. Hidden, or the compiler regroups base + pos - start into
 * number minus pointer, which the verifier refuses. */
OC_INLINE unsigned int oc_distance(const struct oc_cursor *c)
{
	unsigned long distance = c->pos - c->start;

	OC_HIDE(distance);
	return distance;
}

OC_INLINE unsigned short oc_offset(const struct oc_cursor *c)
{
	return (unsigned short)(c->base + oc_distance(c));
}

/* What the frame still holds. Hidden and unknown too: a constant would split the paths again. */
OC_INLINE unsigned int oc_remaining(const struct oc_cursor *c)
{
	unsigned long remaining = c->end - c->pos;

	OC_HIDE(remaining);
	return remaining;
}

/* Moves on by what the caller has checked against the end. The verifier walks every path and
 * forgets one only where its state equals another's: 4 tag counts, 9 label counts and 3 kinds of
 * extension header multiplied to 750,000 verified instructions of the million allowed. The
 * difference of two packet pointers is a number it knows nothing about, so a cursor rebuilt from
 * it is the same on all paths; with oc_rebase 15,000 are left. The mask gives a range back: no
 * chain of ours is longer than 14 + 12 + 32 + 40 + 6 * 2048 + 60 bytes. */
OC_INLINE void oc_advance(struct oc_cursor *c, unsigned int bytes)
{
	c->pos += bytes;
	c->pos = c->start + (oc_distance(c) & 0x3fff);
}

/* Counts from the cursor on. The verifier remembers how many bytes behind `start` were checked,
 * which differs between tag and label counts and keeps their paths apart; a new start has none. */
OC_INLINE void oc_rebase(struct oc_cursor *c)
{
	c->base += oc_distance(c) & 0x3fff;
	oc_advance(c, 0);
	c->start = c->pos;
}

/* Ethernet and VLAN tags; the EtherType behind them. */
OC_INLINE int oc_link(struct oc_cursor *c, struct oc_packet *p)
{
	unsigned int type, i;

	if (c->pos + 14 > c->end)
		return oc_stop(p, OC_PKT_TRUNCATED);
	type = oc_be16(c->pos + 12);
	p->eth_type = type;
	c->pos += 14;
	OC_UNROLL
	for (i = 0; i < OC_VLAN_MAX; i++) {
		if (type != OC_ETH_VLAN && type != OC_ETH_SERVICE_VLAN && type != OC_ETH_OLD_QINQ)
			return type;
		if (c->pos + 4 > c->end)
			return oc_stop(p, OC_PKT_TRUNCATED);
		p->vlan[i] = oc_be16(c->pos);
		p->vlan_count = i + 1;
		type = oc_be16(c->pos + 2);
		p->eth_type = type;
		c->pos += 4;
	}
	if (type == OC_ETH_VLAN || type == OC_ETH_SERVICE_VLAN || type == OC_ETH_OLD_QINQ)
		return oc_stop(p, OC_PKT_TOO_DEEP);
	return type;
}

/* The label stack. Nothing in it names what it carries; as routers do, guess from the first
 * nibble: the EtherType of IPv4 or IPv6, else 0 (a pseudowire's control word begins with 0). */
OC_INLINE int oc_mpls(struct oc_cursor *c, struct oc_packet *p)
{
	unsigned int i, bottom = 0;

	OC_UNROLL
	for (i = 0; i < OC_MPLS_MAX; i++) {
		if (bottom)
			break;
		if (c->pos + 4 > c->end)
			return oc_stop(p, OC_PKT_TRUNCATED);
		bottom = c->pos[2] & 1;
		p->mpls_count = i + 1;
		c->pos += 4;
	}
	if (!bottom)
		return oc_stop(p, OC_PKT_TOO_DEEP);
	if (c->pos + 1 > c->end)
		return oc_stop(p, OC_PKT_TRUNCATED);
	switch (c->pos[0] >> 4) {
	case 4:
		return OC_ETH_IPV4;
	case 6:
		return OC_ETH_IPV6;
	}
	return 0;
}

/* IPv4 with its options; the protocol behind it, or -1 when no transport header follows. */
OC_INLINE int oc_ipv4(struct oc_cursor *c, struct oc_packet *p)
{
	unsigned int header, total, fragment, proto;

	if (c->pos + 20 > c->end)
		return oc_stop(p, OC_PKT_TRUNCATED);
	header = (c->pos[0] & 0x0fu) * 4;
	if (c->pos[0] >> 4 != 4 || header < 20)
		return oc_stop(p, OC_PKT_BOGUS);
	total = oc_be16(c->pos + 2);
	fragment = oc_be16(c->pos + 6) & 0x3fff; /* more fragments, offset */
	proto = c->pos[9];
	p->ip_version = 4;
	p->ip_proto = proto;
	if (header > 20)
		p->flags |= OC_PKT_IP_OPTIONS;
	if (fragment)
		p->flags |= OC_PKT_FRAGMENT;
	if (fragment == 0x2000)
		p->flags |= OC_PKT_FIRST_FRAGMENT;
	if (total && total < header)
		return oc_stop(p, OC_PKT_BOGUS);
	if (c->pos + header > c->end)
		return oc_stop(p, OC_PKT_TRUNCATED);
	oc_advance(c, header);
	c->left = total ? total - header : oc_remaining(c);
	if (total && c->pos + c->left > c->end)
		p->flags |= OC_PKT_TRUNCATED;
	if (fragment & 0x1fff) {
		p->payload_offset = oc_offset(c);
		return -1;
	}
	return proto;
}

/* Takes one extension header from the chain; 0 to go on with *next, -1 when it ends here. */
OC_INLINE int oc_ipv6_extension(struct oc_cursor *c, struct oc_packet *p, unsigned int *next)
{
	unsigned int bytes, fragment = 0, type = *next;

	p->flags |= OC_PKT_EXT_HEADERS;
	if (c->left < 8)
		return oc_stop(p, OC_PKT_BOGUS);
	if (c->pos + 8 > c->end)
		return oc_stop(p, OC_PKT_TRUNCATED);
	bytes = (c->pos[1] + 1u) * 8;
	if (type == OC_IP_FRAGMENT) {
		bytes = 8;
		fragment = oc_be16(c->pos + 2) & 0xfff9; /* offset, more fragments */
	} else if (type == OC_IP_AUTHENTICATION) {
		bytes = (c->pos[1] + 2u) * 4;
		if (bytes < 12)
			return oc_stop(p, OC_PKT_BOGUS);
	}
	if (c->left < bytes)
		return oc_stop(p, OC_PKT_BOGUS);
	*next = c->pos[0];
	if (fragment)
		p->flags |= OC_PKT_FRAGMENT;
	if (fragment == 1)
		p->flags |= OC_PKT_FIRST_FRAGMENT;
	if (c->pos + bytes > c->end)
		return oc_stop(p, OC_PKT_TRUNCATED);
	oc_advance(c, bytes);
	c->left -= bytes;
	p->ip_proto = *next;
	if (fragment & 0xfff8) {
		p->payload_offset = oc_offset(c);
		return -1;
	}
	return 0;
}

/* IPv6 and its chain, an allow-list: a header that is not on it ends the chain and is handed to
 * the caller as the transport protocol, which takes ports only from those it knows. */
OC_INLINE int oc_ipv6(struct oc_cursor *c, struct oc_packet *p)
{
	unsigned int length, next, i;

	if (c->pos + 40 > c->end)
		return oc_stop(p, OC_PKT_TRUNCATED);
	if (c->pos[0] >> 4 != 6)
		return oc_stop(p, OC_PKT_BOGUS);
	length = oc_be16(c->pos + 4);
	next = c->pos[6];
	p->ip_version = 6;
	p->ip_proto = next;
	c->pos += 40;
	c->left = length || next != OC_IP_HOP_BY_HOP ? length : oc_remaining(c);
	if (c->pos + length > c->end)
		p->flags |= OC_PKT_TRUNCATED;
	OC_UNROLL
	for (i = 0; i < OC_EXT_HEADERS_MAX; i++) {
		if (next != OC_IP_HOP_BY_HOP && next != OC_IP_ROUTING && next != OC_IP_FRAGMENT &&
		    next != OC_IP_AUTHENTICATION && next != OC_IP_DESTINATION)
			return next;
		if (oc_ipv6_extension(c, p, &next) < 0)
			return -1;
	}
	if (next == OC_IP_HOP_BY_HOP || next == OC_IP_ROUTING || next == OC_IP_FRAGMENT ||
	    next == OC_IP_AUTHENTICATION || next == OC_IP_DESTINATION)
		return oc_stop(p, OC_PKT_TOO_DEEP);
	return next;
}

/* The IP length ends inside the transport header. A first fragment may be that short, an attack as
 * old as RFC 1858; a whole packet may not. */
OC_INLINE int oc_short_transport(struct oc_packet *p)
{
	return oc_stop(p, p->flags & OC_PKT_FIRST_FRAGMENT ? 0 : OC_PKT_BOGUS);
}

/* The transport header at the cursor. -1 when the frame or the IP length ends inside of it. */
OC_INLINE int oc_transport(struct oc_cursor *c, struct oc_packet *p, unsigned int proto)
{
	unsigned int header;

	if (proto == OC_IP_NONE && p->ip_version == 6)
		return -1;
	if (c->pos + 1 > c->end) /* complete without a byte: that is no truncation */
		return c->left ? oc_stop(p, OC_PKT_TRUNCATED) : -1;
	if (!c->left)
		return -1;
	p->l4_offset = oc_offset(c);
	if (proto == OC_IP_TCP)
		header = 20;
	else if (proto == OC_IP_UDP)
		header = 8;
	else if (proto == OC_IP_SCTP)
		header = 12;
	else if (proto == OC_IP_ICMP && p->ip_version == 4)
		header = 8;
	else if (proto == OC_IP_ICMPV6 && p->ip_version == 6)
		header = 4;
	else
		return 0;
	if (header == 4 || proto == OC_IP_ICMP) {
		p->icmp_type = c->pos[0];
	} else {
		if (c->left < 4)
			return oc_short_transport(p);
		if (c->pos + 4 > c->end)
			return oc_stop(p, OC_PKT_TRUNCATED);
		p->sport = oc_be16(c->pos);
		p->dport = oc_be16(c->pos + 2);
		p->has_ports = 1;
	}
	if (c->left < header)
		return oc_short_transport(p);
	if (c->pos + header > c->end)
		return oc_stop(p, OC_PKT_TRUNCATED);
	if (proto == OC_IP_TCP) {
		if (c->pos + 13 > c->end) /* never true; the verifier forgets `header` */
			return -1;
		header = (c->pos[12] >> 4) * 4;
		if (header < 20)
			return oc_stop(p, OC_PKT_BOGUS);
		if (c->left < header)
			return oc_short_transport(p);
		if (c->pos + header > c->end)
			return oc_stop(p, OC_PKT_TRUNCATED);
	}
	oc_advance(c, header);
	p->payload_offset = oc_offset(c);
	return 0;
}

/* Parses one frame. Always fills *out; returns OC_LAYER_*. */
OC_INLINE int oc_parse(const void *data, const void *data_end, struct oc_packet *out)
{
	struct oc_cursor c = { data, data, data_end, 0, 0 };
	int type, proto;

	__builtin_memset(out, 0, sizeof *out);
	type = oc_link(&c, out);
	if (type < 0)
		return out->eth_type ? OC_LAYER_LINK : OC_LAYER_NONE;
	if (type == OC_ETH_MPLS || type == OC_ETH_MPLS_UPSTREAM)
		type = oc_mpls(&c, out);
	if (type != OC_ETH_IPV4 && type != OC_ETH_IPV6 && type != OC_ETH_ARP)
		return OC_LAYER_LINK;
	if (c.pos + 1 > c.end) {
		oc_stop(out, OC_PKT_TRUNCATED);
		return OC_LAYER_LINK;
	}
	out->l3_offset = oc_offset(&c);
	oc_rebase(&c);
	if (type == OC_ETH_ARP)
		return OC_LAYER_NETWORK;
	proto = type == OC_ETH_IPV4 ? oc_ipv4(&c, out) : oc_ipv6(&c, out);
	if (proto >= 0)
		oc_transport(&c, out, proto);
	return out->l4_offset ? OC_LAYER_TRANSPORT : OC_LAYER_NETWORK;
}

/* Which management protocols a parsed packet belongs to: OC_MGMT_* or 0. Later fragments belong to
 * none, having no ports; SSH does not fragment and DHCP fits one packet. */
OC_INLINE unsigned int oc_management(const struct oc_packet *p)
{
	if (p->eth_type == OC_ETH_ARP)
		return OC_MGMT_ARP;
	if (p->ip_version == 6 && p->ip_proto == OC_IP_ICMPV6 && p->l4_offset)
		return p->icmp_type >= 133 && p->icmp_type <= 137 ? OC_MGMT_ND : 0;
	if (!p->has_ports)
		return 0;
	if (p->ip_proto == OC_IP_TCP)
		return p->sport == 22 || p->dport == 22 ? OC_MGMT_SSH : 0;
	if (p->ip_proto != OC_IP_UDP)
		return 0;
	if (p->ip_version == 4)
		return p->sport == 67 || p->sport == 68 || p->dport == 67 || p->dport == 68 ?
			       OC_MGMT_DHCP : 0;
	return p->sport == 546 || p->sport == 547 || p->dport == 546 || p->dport == 547 ?
		       OC_MGMT_DHCP : 0;
}

#endif
