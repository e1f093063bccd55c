/* A TCP proxy that makes each round trip longer by a fixed time and limits nothing else: one thread, epoll.

   delay LISTEN_PORT PORT MICROSECONDS

   What a client sends waits in one queue until it is due; what the server answers goes through at once. Prints a
   line when it listens. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { ROOM = 65536 };

struct pair;
struct end {
    int fd;
    bool client;
    struct pair *pair;
};
struct pair {
    struct end client, server;
    bool closed; /* and never freed: events and packets may still name it, and a run has few of them */
};
struct packet {
    uint64_t due;
    struct pair *pair;
    struct packet *next;
    size_t size; /* 0: the client has closed */
    char bytes[];
};

static struct packet *first, **last = &first;
static struct sockaddr_in server;
static int polled, listening, timer;

static void die(const char *what) {
    fprintf(stderr, "delay: %s (%s)\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void watch(int fd, void *what) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    if (epoll_ctl(polled, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

static void shut(struct pair *p) {
    if (p->closed) return;
    p->closed = true;
    close(p->client.fd);
    close(p->server.fd);
}

static void pass(struct pair *p, int fd, const char *bytes, size_t size) { /* blocks: both sides always read */
    while (size && !p->closed) {
        ssize_t n = send(fd, bytes, size, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            shut(p);
            return;
        }
        bytes += n;
        size -= (size_t)n;
    }
}

static void accept_one(void) {
    int one = 1, fd = accept(listening, NULL, NULL), other = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || other < 0) die("accept");
    struct pair *p = calloc(1, sizeof *p);
    if (!p) die("memory");
    p->client = (struct end){fd, true, p};
    p->server = (struct end){other, false, p};
    if (connect(other, (struct sockaddr *)&server, sizeof server)) {
        shut(p);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(other, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    watch(fd, &p->client);
    watch(other, &p->server);
}

static void readable(struct end *end, uint64_t wait) {
    static char bytes[ROOM];
    struct pair *p = end->pair;
    if (p->closed) return;
    ssize_t n = recv(end->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (!end->client) {
        if (n <= 0) shut(p);
        else pass(p, p->client.fd, bytes, (size_t)n);
        return;
    }
    if (n <= 0) {
        n = 0;
        epoll_ctl(polled, EPOLL_CTL_DEL, end->fd, NULL);
    }
    struct packet *packet = malloc(sizeof *packet + (size_t)n);
    if (!packet) die("memory");
    *packet = (struct packet){.due = now() + wait, .pair = p, .size = (size_t)n};
    memcpy(packet->bytes, bytes, (size_t)n);
    *last = packet;
    last = &packet->next;
}

static void deliver(void) {
    while (first && first->due <= now()) {
        struct packet *packet = first;
        struct pair *p = packet->pair;
        if (packet->size) pass(p, p->server.fd, packet->bytes, packet->size);
        else shut(p);
        first = packet->next;
        if (!first) last = &first;
        free(packet);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) die("wrong use: see the head of delay.c");
    uint64_t wait = strtoull(argv[3], NULL, 10) * 1000u;
    int one = 1;
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    server = own;
    server.sin_port = htons((uint16_t)atoi(argv[2]));
    listening = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listening, (struct sockaddr *)&own, sizeof own) || listen(listening, 512)) die("listen");
    polled = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    watch(listening, &listening);
    watch(timer, &timer);
    puts("listening");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[64];
        int n = epoll_wait(polled, events, 64, -1);
        for (int i = 0; i < n; i++) {
            uint64_t ticks;
            if (events[i].data.ptr == &listening) accept_one();
            else if (events[i].data.ptr != &timer) readable(events[i].data.ptr, wait);
            else if (read(timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die("timer");
        }
        deliver();
        if (first) {
            struct itimerspec at = {.it_value = {(time_t)(first->due / 1000000000u), (long)(first->due % 1000000000u)}};
            timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
        }
    }
}
