// SPDX-License-Identifier: Apache-2.0
/*
 * How fast a network is, by TCP between a guest and its host, as little as can be beside it.
 *
 *     bench-net serve PORT                             on one side, for ever
 *     bench-net ADDRESS PORT send|receive|ping SECONDS on the other, which prints
 *
 *     bench-net MODE: N bytes in S seconds
 *
 * Of what is sent, the server says at the end how much arrived. A ping is a byte there and back.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 17];

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t drain(int peer)
{
	uint64_t count = 0;
	ssize_t part;

	while ((part = read(peer, buffer, sizeof(buffer))) > 0)
		count += (uint64_t)part;
	return count;
}

static void answer(int peer)
{
	uint64_t count;
	char mode;

	if (read(peer, &mode, 1) != 1)
		return;
	if (mode == 's') {
		count = drain(peer);
		if (write(peer, &count, sizeof(count)) < 0)
			return;
	}
	while (mode == 'r' && write(peer, buffer, sizeof(buffer)) > 0)
		;
	while (mode == 'p' && read(peer, buffer, 1) == 1 && write(peer, buffer, 1) == 1)
		;
}

static void serve(uint16_t port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 8))
		fail("listen");
	signal(SIGPIPE, SIG_IGN);
	for (;;) {
		int peer = accept(listener, NULL, NULL);

		if (peer < 0)
			fail("accept");
		setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		answer(peer);
		close(peer);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	int peer = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	double began, seconds;
	uint64_t count = 0;
	ssize_t part = 1;

	if (argc == 3 && !strcmp(argv[1], "serve"))
		serve((uint16_t)atoi(argv[2]));
	if (argc != 5 || !inet_aton(argv[1], &address.sin_addr))
		return 2;
	address.sin_port = htons((uint16_t)atoi(argv[2]));
	seconds = atof(argv[4]);
	if (connect(peer, (struct sockaddr *)&address, sizeof(address)))
		fail(argv[1]);
	setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (write(peer, argv[3], 1) != 1)
		fail("write");
	began = now();
	while (part > 0 && now() - began < seconds) {
		if (*argv[3] == 's') {
			part = write(peer, buffer, sizeof(buffer));
			continue;
		}
		if (*argv[3] == 'p' && write(peer, buffer, 1) != 1)
			fail("write");
		part = read(peer, buffer, *argv[3] == 'p' ? 1 : sizeof(buffer));
		count += part > 0 ? (uint64_t)part : 0;
	}
	if (part <= 0)
		fail("the connection");
	if (*argv[3] == 's') {
		shutdown(peer, SHUT_WR);
		if (read(peer, &count, sizeof(count)) != sizeof(count))
			fail("the count");
	}
	printf("bench-net %s: %llu bytes in %.6f seconds\n", argv[3], (unsigned long long)count,
	       now() - began);
	return 0;
}
