/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtio network device's packets (VIRTIO 1.2, 5.1.6) between virtqueues and a TAP interface, or
 * the stream socket of passt: where neither the kernel (vhost-net) nor another process does it.
 */
#ifndef PYVMM_NET_H
#define PYVMM_NET_H

#include <stdint.h>

#include "ring.h"

#define PYVMM_NET_HEADER 12        /* struct virtio_net_hdr_v1 */
#define PYVMM_NET_MOST 65562       /* a header, and the largest frame with offloads (5.1.6.3.1) */
#define PYVMM_NET_WINDOW 64        /* buffers that one packet may take */

/* One frame on its way through a stream: four bytes of length, then the frame. */
struct pyvmm_net_frame {
	uint32_t done;
	uint32_t size;
	uint8_t bytes[4 + PYVMM_NET_MOST];
};

/* One queue and the thread that serves it. */
struct pyvmm_net_ring {
	struct pyvmm_queue *queue;
	struct pyvmm_chain *chains;    /* PYVMM_NET_WINDOW of them to receive, one to transmit */
	struct pyvmm_net_frame *frame; /* NULL: file is a TAP with a header before each frame */
	int file;                      /* does not block */
	uint8_t mergeable;             /* MRG_RXBUF was negotiated */
	int call;                      /* eventfds */
	int doorbell;
	int stop;
	uint32_t stopping;
	uint64_t packets;              /* moved */
	uint64_t bytes;                /* of them, without headers */
	uint64_t dropped;              /* packets */

	uint32_t first;                /* receiving: chains is a ring of the buffers at hand */
	uint32_t count;
	uint64_t room;                 /* bytes in them */
};

int pyvmm_net_receive(struct pyvmm_net_ring *ring);
int pyvmm_net_transmit(struct pyvmm_net_ring *ring);
void pyvmm_net_stop(struct pyvmm_net_ring *ring);

int pyvmm_tun_interface(int fd, unsigned long request, char *name, int flags);

#endif
