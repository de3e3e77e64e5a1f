/* SPDX-License-Identifier: Apache-2.0
 *
 * <linux/if_xdp.h> plus what Debian 12's headers (6.1) are too old to know. Each number is kernel
 * ABI with the release that brought it. We speak to the socket ourselves instead of through
 * libxdp's xsk.h: see ARCHITECTURE.md, "Why not libxdp's socket half".
 */
#ifndef OC_XDP_H
#define OC_XDP_H
#include <linux/if_xdp.h>
#include <sys/socket.h>

#ifndef AF_XDP
#define AF_XDP 44
#endif
#ifndef SOL_XDP
#define SOL_XDP 283
#endif
#ifndef XDP_USE_SG
#define XDP_USE_SG (1 << 4)          /* 6.6: multi-buffer */
#endif
#ifndef XDP_PKT_CONTD
#define XDP_PKT_CONTD (1 << 0)       /* 6.6: the packet goes on in the next descriptor */
#endif
#ifndef SO_PREFER_BUSY_POLL
#define SO_PREFER_BUSY_POLL 69       /* 5.11 */
#endif
#ifndef SO_BUSY_POLL_BUDGET
#define SO_BUSY_POLL_BUDGET 70       /* 5.11 */
#endif
#ifndef SO_BUSY_POLL
#define SO_BUSY_POLL 46
#endif
#endif
