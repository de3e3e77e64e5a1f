// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The program that a veth peer needs: XDP_REDIRECT and XDP_TX into a veth deliver only when the
 * other end runs XDP too. It passes everything; it owns no map.
 */
#include <uapi/linux/bpf.h>

int oc_peer(struct xdp_md *ctx)
{
	return XDP_PASS;
}
