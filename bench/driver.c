/* A load driver for HTTP/1.1: one thread, epoll, keep-alive, one request at a time on each connection.

   driver 127.0.0.1 PORT PATH [option value]...

   connections 32    seconds 5       warm 1          measured after `warm` seconds; both are in the totals
   rate 0            requests a second with exponential gaps, each late one counted from when it was due; 0: closed loop
   count 0           ends after this many requests; 0: by time
   method GET        body TEMPLATE   type MEDIA      the first %s of the template becomes the token
   tokens FILE       one a line      out FILE        where the tokens of the end are written
   use chain         chain: connection i follows token i; draw: any that is free, at random; cycle: in order, again
                     and again; once: in order, each once; list: any, at random, as it stands in the file. Under
                     chain, draw and cycle the answer's `take` replaces the token.
   take refresh_token                bearer 0        1: the token goes into Authorization
   cookies 0         1: the token goes into Cookie, and the answer's Set-Cookie fields replace it all
   field "Name: value"               one header field more
   expect 200        the status that acknowledges

   Prints one JSON object; latencies in microseconds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { ROOM = 32768, STATUSES = 600, FINE = 128, BUCKETS = 40 * FINE };
enum use { CHAIN, DRAW, CYCLE, ONCE, LIST, NONE };

struct connection {
    int fd;
    bool waiting;
    long token;
    uint64_t since; /* when its request was sent, or due */
    size_t got;
    char in[ROOM];
};

static struct sockaddr_in server;
static struct connection *connections;
static int polled, timer;
static long connections_count = 32, limit;
static double rate;
static enum use use = NONE;
static bool bearer, cookies;
static const char *take = "\"refresh_token\"", *before = "", *after = "";
static char head[4096];
static size_t before_length, after_length;

static char *tokens; /* slots of `stride` bytes, each ended by NUL */
static unsigned char *taken;
static long tokens_count, cursor;
static size_t stride;

static uint64_t started, from, until, due, histogram[BUCKETS], slowest;
static long issued, in_flight, acknowledged, measured, errors, unanswered, statuses[STATUSES];
static long expected = 200;
static long *idle, idle_count;

static void die(const char *what) {
    fprintf(stderr, "driver: %s (%s)\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t dice(void) { /* splitmix64 */
    static uint64_t state = 88172645463325252u;
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* -- the histogram: below FINE exact, above in FINE steps for each power of two (an error under 0.8 %) */

static void record(uint64_t microseconds) {
    int shift = 0;
    if (microseconds > slowest) slowest = microseconds;
    while (microseconds >> shift >= 2 * FINE) shift++;
    uint64_t bucket = (uint64_t)shift * FINE + (microseconds >> shift);
    histogram[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
}

static uint64_t percentile(double share) {
    double seen = 0, all = 0;
    for (int i = 0; i < BUCKETS; i++) all += (double)histogram[i];
    for (int i = 0; i < BUCKETS; i++) {
        seen += (double)histogram[i];
        if (seen > 0 && seen >= share * all) {
            int shift = i < 2 * FINE ? 0 : i / FINE - 1;
            uint64_t top = ((uint64_t)(i - shift * FINE) + 1) << shift; /* the upper edge: never flattering */
            return shift == 0 ? top - 1 : top < slowest ? top : slowest;
        }
    }
    return 0;
}

/* -- tokens */

static void read_tokens(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) die(path);
    char *line = NULL;
    size_t room = 0, longest = 0;
    ssize_t length;
    while ((length = getline(&line, &room, file)) > 0) {
        tokens_count++;
        if ((size_t)length > longest) longest = (size_t)length;
    }
    stride = longest + 32; /* a rival's token may grow by digits */
    tokens = malloc((size_t)tokens_count * stride);
    taken = calloc((size_t)tokens_count, 1);
    if (!tokens || !taken) die("memory");
    rewind(file);
    for (long i = 0; (length = getline(&line, &room, file)) > 0 && i < tokens_count; i++) {
        line[strcspn(line, "\r\n")] = 0;
        strcpy(tokens + (size_t)i * stride, line);
    }
    free(line);
    fclose(file);
}

static void write_tokens(const char *path) {
    FILE *file = fopen(path, "w");
    if (!file) die(path);
    for (long i = 0; i < tokens_count; i++) fprintf(file, "%s\n", tokens + (size_t)i * stride);
    if (fclose(file)) die(path);
}

/* The slot of the next request; -1 where none is left, or none is free now. */
static long next_token(long connection) {
    switch (use) {
    case CHAIN: return connection;
    case LIST: return (long)(dice() % (uint64_t)tokens_count);
    case ONCE: return cursor < tokens_count ? cursor++ : -1;
    case CYCLE:
        if (taken[cursor % tokens_count]) return -1;
        return cursor++ % tokens_count;
    case DRAW:
        for (int i = 0; i < 1000; i++) {
            long slot = (long)(dice() % (uint64_t)tokens_count);
            if (!taken[slot]) return slot;
        }
        return -1;
    default: return 0;
    }
}

static void replace(struct connection *c, const char *body) {
    char *slot = tokens + (size_t)c->token * stride;
    const char *at = strstr(body, take);
    at = at ? strchr(at + strlen(take), '"') : NULL;
    const char *end = at ? strchr(at + 1, '"') : NULL;
    if (!end || (size_t)(end - at) > stride) {
        errors++;
        return;
    }
    memcpy(slot, at + 1, (size_t)(end - at - 1));
    slot[end - at - 1] = 0;
}

/* What a browser would send next: name and value of each Set-Cookie field. `end` is where the head ends. */
static void replace_cookies(struct connection *c, const char *end) {
    char *slot = tokens + (size_t)c->token * stride;
    size_t used = 0;
    for (const char *line = strchr(c->in, '\n') + 1; line < end; line = strchr(line, '\n') + 1) {
        if (strncasecmp(line, "set-cookie:", 11)) continue;
        const char *pair = line + 11 + strspn(line + 11, " ");
        size_t size = strcspn(pair, ";\r"), blank = used ? 2 : 0;
        if (used + blank + size >= stride) {
            errors++;
            return;
        }
        memcpy(slot + used, "; ", blank);
        memcpy(slot + used + blank, pair, size);
        used += blank + size;
    }
    if (!used) errors++;
    else slot[used] = 0;
}

/* -- connections */

static void open_connection(struct connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&server, sizeof server)) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(polled, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
    c->got = 0;
}

static void settle(struct connection *c) { /* no request under way any more */
    c->waiting = false;
    in_flight--;
    if (taken) taken[c->token] = 0;
    idle[idle_count++] = c - connections;
}

static void lost(struct connection *c) {
    if (c->waiting) {
        errors++;
        unanswered++; /* it may have been done */
        settle(c);
    }
    close(c->fd);
    open_connection(c);
}

static bool ask(struct connection *c, uint64_t since) {
    long slot = next_token(c - connections);
    if (slot < 0) return false;
    static char out[ROOM];
    const char *token = tokens ? tokens + (size_t)slot * stride : "";
    size_t length = strlen(token), size = before_length + after_length + (bearer || cookies ? 0 : length);
    int n = bearer ? snprintf(out, sizeof out, "%sAuthorization: Bearer %s\r\n\r\n", head, token)
            : cookies ? snprintf(out, sizeof out, "%sCookie: %s\r\n\r\n", head, token)
            : size ? snprintf(out, sizeof out, "%sContent-Length: %zu\r\n\r\n%s%s%s", head, size, before, token, after)
                   : snprintf(out, sizeof out, "%s\r\n", head);
    if (n >= (int)sizeof out) die("request too long");
    c->token = slot;
    c->since = since;
    c->waiting = true;
    if (taken) taken[slot] = 1;
    issued++;
    in_flight++;
    if (send(c->fd, out, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) != n) lost(c);
    return true;
}

static void answered(struct connection *c, int status, const char *end) {
    uint64_t at = now(), counts = rate > 0 ? c->since : at;
    statuses[status]++;
    if (status == expected) {
        acknowledged++;
        if (use <= CYCLE && cookies) replace_cookies(c, end);
        else if (use <= CYCLE) replace(c, end + 4);
    }
    if (counts >= from && counts < until) {
        record((at - c->since) / 1000);
        if (status == expected) measured++;
    }
    settle(c);
}

static void readable(struct connection *c) {
    ssize_t n = recv(c->fd, c->in + c->got, ROOM - 1 - c->got, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        lost(c);
        return;
    }
    c->got += (size_t)n;
    c->in[c->got] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) {
        if (c->got == ROOM - 1) die("header fields too long");
        return;
    }
    size_t length = 0;
    bool closes = false;
    for (char *line = strchr(c->in, '\n') + 1; line < end; line = strchr(line, '\n') + 1) {
        if (!strncasecmp(line, "content-length:", 15)) length = strtoul(line + 15, NULL, 10);
        if (!strncasecmp(line, "connection: close", 17)) closes = true;
        if (!strncasecmp(line, "transfer-encoding:", 18)) die("a chunked answer");
    }
    size_t whole = (size_t)(end + 4 - c->in) + length;
    if (whole >= ROOM) die("answer too long");
    if (c->got < whole) return;
    int status = atoi(c->in + 9);
    if (!c->waiting || status < 100 || status >= STATUSES) die("not an answer");
    c->got = 0;
    answered(c, status, end);
    if (closes) lost(c);
}

/* -- the run */

static bool wanted(void) { return limit == 0 || issued < limit; }

static void issue(uint64_t t) {
    /* Closed loop: whoever is idle asks. Open loop: so many as are due; what finds no connection stays due. */
    while (idle_count > 0 && wanted() && (rate > 0 ? due <= t && due < until : t < until)) {
        if (!ask(&connections[idle[--idle_count]], rate > 0 ? due : now())) {
            idle_count++;
            return;
        }
        if (rate > 0) due += (uint64_t)(-log1p(-(double)(dice() >> 11) / 9007199254740992.0) / rate * 1e9);
    }
}

static void run(double warm, double seconds) {
    started = due = now();
    from = started + (uint64_t)(warm * 1e9);
    until = from + (uint64_t)(seconds * 1e9);
    uint64_t patience = until + 10000000000u;
    for (;;) {
        uint64_t t = now();
        issue(t);
        bool over = !wanted() || (use == ONCE && cursor >= tokens_count) || (rate > 0 ? due >= until : t >= until);
        if ((over && in_flight == 0) || t > patience) break;
        if (rate > 0 && idle_count > 0 && !over) {
            struct itimerspec at = {.it_value = {(time_t)(due / 1000000000u), (long)(due % 1000000000u)}};
            timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
        }
        struct epoll_event events[256];
        int n = epoll_wait(polled, events, 256, 20);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr) {
                readable(events[i].data.ptr);
            } else {
                uint64_t ticks;
                if (read(timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die("timer");
            }
        }
    }
    uint64_t end = now();
    if (end < until) until = end > from ? end : from + 1; /* it ended by count: the window is what there was */
}

static double cpu(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv) {
    double warm = 1, seconds = 5;
    const char *method = "GET", *type = "application/json", *path = NULL, *out = NULL, *field = NULL;
    if (argc < 4 || argc % 2) die("wrong use: see the head of driver.c");
    for (int i = 4; i < argc; i += 2) {
        const char *name = argv[i];
        char *value = argv[i + 1];
        if (!strcmp(name, "connections")) connections_count = atol(value);
        else if (!strcmp(name, "seconds")) seconds = atof(value);
        else if (!strcmp(name, "warm")) warm = atof(value);
        else if (!strcmp(name, "rate")) rate = atof(value);
        else if (!strcmp(name, "count")) limit = atol(value);
        else if (!strcmp(name, "method")) method = value;
        else if (!strcmp(name, "type")) type = value;
        else if (!strcmp(name, "tokens")) path = value;
        else if (!strcmp(name, "out")) out = value;
        else if (!strcmp(name, "bearer")) bearer = atoi(value) != 0;
        else if (!strcmp(name, "cookies")) cookies = atoi(value) != 0;
        else if (!strcmp(name, "field")) field = value;
        else if (!strcmp(name, "expect")) expected = atol(value);
        else if (!strcmp(name, "take")) {
            char *quoted = malloc(strlen(value) + 3);
            if (!quoted) die("memory");
            sprintf(quoted, "\"%s\"", value);
            take = quoted;
        } else if (!strcmp(name, "body")) {
            char *hole = strstr(value, "%s");
            before = value;
            if (hole) {
                *hole = 0;
                after = hole + 2;
            }
        } else if (!strcmp(name, "use")) {
            static const char *uses[] = {"chain", "draw", "cycle", "once", "list"};
            for (use = CHAIN; use < NONE && strcmp(value, uses[use]); use++) continue;
            if (use == NONE) die("no such use");
        } else die("no such option");
    }
    before_length = strlen(before);
    after_length = strlen(after);
    if ((use == NONE) != (path == NULL)) die("`tokens` and `use` go together");
    if (path) read_tokens(path);
    if (path && tokens_count < (use == CHAIN || use == DRAW || use == CYCLE ? connections_count : 1)) die("too few tokens");
    server.sin_family = AF_INET;
    server.sin_port = htons((uint16_t)atoi(argv[2]));
    if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1) die("address");
    int n = snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: %s:%s\r\n", method, argv[3], argv[1], argv[2]);
    if (field) n += snprintf(head + n, sizeof head - (size_t)n, "%s\r\n", field);
    if (before_length + after_length) snprintf(head + n, sizeof head - (size_t)n, "Content-Type: %s\r\n", type);
    else if (!strcmp(method, "POST")) snprintf(head + n, sizeof head - (size_t)n, "Content-Length: 0\r\n");

    polled = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (polled < 0 || timer < 0 || epoll_ctl(polled, EPOLL_CTL_ADD, timer, &event)) die("epoll");
    connections = calloc((size_t)connections_count, sizeof *connections);
    idle = calloc((size_t)connections_count, sizeof *idle);
    if (!connections || !idle) die("memory");
    for (long i = connections_count - 1; i >= 0; i--) {
        open_connection(&connections[i]);
        idle[idle_count++] = i;
    }
    double before_run = cpu();
    run(warm, seconds);
    double spent = cpu() - before_run, window = (double)(until - from) / 1e9;
    if (out) write_tokens(out);

    long unsent = rate > 0 && due < until ? (long)((double)(until - due) / 1e9 * rate) : 0;
    printf("{\"seconds\": %.6f, \"acknowledged\": %ld, \"rate\": %.1f, \"total\": %ld, \"issued\": %ld, ", window, measured,
           (double)measured / window, acknowledged, issued);
    printf("\"errors\": %ld, \"unanswered\": %ld, \"unsent\": %ld, \"statuses\": {", errors, unanswered + in_flight, unsent);
    const char *comma = "";
    for (int i = 0; i < STATUSES; i++)
        if (statuses[i]) {
            printf("%s\"%d\": %ld", comma, i, statuses[i]);
            comma = ", ";
        }
    printf("}, \"latency\": {\"p50\": %lu, \"p90\": %lu, \"p99\": %lu, \"p99.9\": %lu, \"max\": %lu}, ",
           percentile(0.5), percentile(0.9), percentile(0.99), percentile(0.999), slowest);
    printf("\"cpu_seconds\": %.4f, \"cpu_us\": %.2f}\n", spent, issued ? spent / (double)issued * 1e6 : 0.0);
    return 0;
}
