/* Load and target of the benchmarks: one epoll loop in C, so that neither is the bottleneck beside a proxy in any language.
 *
 *   load serve   at=ADDRESS:PORT [reset=1]        (reset: its ends leave no port of a proxy in TIME_WAIT)
 *   load bulk    at=PROXY [via=connect|socks5 target=T head=LINES] conns=8 stalled=0 seconds=1 warm=0.3
 *   load tunnels at=PROXY [via=...] conns=16 seconds=1 warm=0.3 size=64 [keep=1]   (keep: requests on open tunnels)
 *   load peers   at=RELAY tokens=FILE batch=1000                               (each line on stdin: one more batch)
 *
 * `serve` is target and exit in one: any CONNECT is answered 200, and `GET /N` with N bytes (0: endless) of a pattern that
 * `bulk` compares at the beginning of each stream. `stalled` connections ask for an endless stream and never read it.
 * `head` is whole header lines of the CONNECT. Results are one JSON object per line; `all_*` count the warm-up too, for CPU
 * per unit. Everything is bounded in time. Not here: TLS, uploads, IPv6.
 * Source: epoll(7), tcp(7) (MSG_TRUNC), RFC 1928, RFC 6455 section 5.2.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum {
    PATTERN = 251,             /* bytes after which the pattern repeats */
    BLOCK = 256 * 1024,        /* bytes per send, and bytes compared per stream */
    SEND_TURN = 1024 * 1024,   /* bytes per connection and turn of the loop */
    DISCARD = 4 * 1024 * 1024, /* bytes dropped per read */
    HEAD_MAX = 2048, EVENTS = 256, SAMPLES_MAX = 1 << 20,
    PEERS_MAX = 20000, PEERS_DIALLING_MAX = 64, PEERS_PER_ADDRESS = 200, HEARTBEAT_S = 30,
    SERVE_MAX_S = 3600, LAST_MAX_S = 3, GRACE_S = 20,
};

static struct {
    struct sockaddr_in at, target;
    const char *via, *head, *tokens;
    int conns, stalled, batch, reset, keep;
    double seconds, warm;
    long size;
} opt = {.via = "", .head = "", .conns = 8, .batch = 1000, .seconds = 1, .warm = 0.3, .size = 64};

static uint8_t pattern[BLOCK + PATTERN], block[BLOCK];
static struct epoll_event events[EVENTS];
static int loop_fd;

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void watch(int op, int fd, uint32_t events, void *who) {
    struct epoll_event event = {.events = events, .data.ptr = who};
    if (epoll_ctl(loop_fd, op, fd, &event) < 0) die("epoll_ctl");
}

static void put(int fd, const void *data, size_t size) {
    if (send(fd, data, size, MSG_NOSIGNAL) < 0 && errno != EPIPE && errno != ECONNRESET) die("send");
}

/* Begins a connection; `source` (host order) is the local address, 0 for any. */
static int dial(uint32_t source, void *who) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    if (fd < 0) die("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (source) {
        struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(source)};
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&from, sizeof from) < 0) die("bind");
    }
    if (connect(fd, (struct sockaddr *)&opt.at, sizeof opt.at) < 0 && errno != EINPROGRESS) die("connect");
    watch(EPOLL_CTL_ADD, fd, EPOLLOUT, who);
    return fd;
}

static int dialled(int fd) {
    int error = 0;
    socklen_t size = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
}

/* The target and exit. */

struct served {
    int fd, writing;
    int64_t left; /* bytes still to send; -1: endless */
    uint64_t sent;
    size_t held;
    char head[HEAD_MAX];
};

static int pump(struct served *c) {
    for (size_t turn = 0; c->left && turn < SEND_TURN;) {
        size_t size = c->left > 0 && c->left < BLOCK ? (size_t)c->left : BLOCK;
        ssize_t n = send(c->fd, pattern + c->sent % PATTERN, size, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) return 0;
        if (n < 0) break;
        c->sent += n, turn += n;
        if (c->left > 0) c->left -= n;
    }
    if (c->writing != (c->left != 0)) {
        c->writing = c->left != 0;
        watch(EPOLL_CTL_MOD, c->fd, c->writing ? EPOLLIN | EPOLLOUT : EPOLLIN, c);
    }
    return 1;
}

static int serve_requests(struct served *c) {
    static const char yes[] = "HTTP/1.1 200 Connection established\r\n\r\n";
    ssize_t n = recv(c->fd, c->head + c->held, sizeof c->head - 1 - c->held, 0);
    if (n <= 0) return n < 0 && errno == EAGAIN;
    c->held += n;
    for (char *end; (end = memmem(c->head, c->held, "\r\n\r\n", 4)) != NULL;) {
        if (memcmp(c->head, "CONNECT ", 8) == 0) put(c->fd, yes, sizeof yes - 1);
        if (memcmp(c->head, "GET /", 5) == 0) {
            c->left = atoll(c->head + 5);
            if (c->left == 0) c->left = -1;
            c->sent = 0;
        }
        c->held -= end + 4 - c->head;
        memmove(c->head, end + 4, c->held);
    }
    return c->held < sizeof c->head - 1 && pump(c);
}

static void serve(void) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&opt.at, sizeof opt.at) < 0 || listen(listener, 4096) < 0) die("listen");
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    printf("{\"serving\": true}\n");
    for (double end = now_s() + SERVE_MAX_S; now_s() < end;) {
        int count = epoll_wait(loop_fd, events, EVENTS, 1000);
        for (int i = 0; i < count; i++) {
            struct served *c = events[i].data.ptr;
            for (int fd; c == NULL && (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
                struct served *made = calloc(1, sizeof *made);
                made->fd = fd;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                watch(EPOLL_CTL_ADD, fd, EPOLLIN, made);
            }
            if (c == NULL) continue;
            int alive = !(events[i].events & (EPOLLERR | EPOLLHUP));
            if (alive && events[i].events & EPOLLIN) alive = serve_requests(c);
            if (alive && events[i].events & EPOLLOUT) alive = pump(c);
            if (!alive && opt.reset) setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
            if (!alive) close(c->fd), free(c);
        }
    }
}

/* Customers: bulk and tunnels. */

struct customer {
    int fd, stalled;
    enum { DIALLING, GREETED, ASKED, STREAMING } step;
    uint64_t received;
    double began_s;
    size_t held;
    char buffer[HEAD_MAX];
};

static uint64_t window_bytes, all_bytes;
static uint32_t *samples;
static long sampled, done, failed;
static char fault[128] = "";
static int measuring, one_shot, ending, open_now;

static void begin(struct customer *c) {
    if (ending && open_now--) return;
    c->step = DIALLING, c->received = 0, c->held = 0, c->began_s = now_s();
    c->fd = dial(0, c);
}

static void request(struct customer *c) {
    char line[64];
    put(c->fd, line, snprintf(line, sizeof line, "GET /%ld HTTP/1.1\r\n\r\n", one_shot ? opt.size : 0L));
    c->step = STREAMING;
    if (c->stalled) watch(EPOLL_CTL_MOD, c->fd, 0, c);
}

static void ask(struct customer *c) {
    char text[HEAD_MAX], name[64];
    if (*opt.via == 's') {
        uint8_t raw[10] = {5, 1, 0, 1};
        memcpy(raw + 4, &opt.target.sin_addr, 4), memcpy(raw + 8, &opt.target.sin_port, 2);
        put(c->fd, raw, sizeof raw);
    } else {
        snprintf(name, sizeof name, "%s:%d", inet_ntoa(opt.target.sin_addr), ntohs(opt.target.sin_port));
        const char *form = "CONNECT %s HTTP/1.1\r\nHost: %s\r\n%.1500s\r\n";
        put(c->fd, text, snprintf(text, sizeof text, form, name, name, opt.head));
    }
    c->step = ASKED;
}

static void lost(struct customer *c, const char *why) {
    failed++;
    if (!*fault) snprintf(fault, sizeof fault, "%s", why);
    close(c->fd);
    usleep(1000); /* a proxy that refuses everything must not be asked a million times */
    begin(c);
}

/* The proxy's answer: everything until it is whole, then the request. What follows it at once is the stream's. */
static void answered(struct customer *c) {
    ssize_t n = recv(c->fd, c->buffer + c->held, sizeof c->buffer - 1 - c->held, 0);
    if (n <= 0 && (n == 0 || errno != EAGAIN)) return lost(c, "closed before it answered");
    if (n < 0) return;
    c->held += n, c->buffer[c->held] = 0;
    if (c->step == GREETED && c->held >= 2) {
        c->held = 0;
        ask(c);
    } else if (*opt.via == 's' && c->held >= 10) {
        c->buffer[1] == 0 ? request(c) : lost(c, "refused by SOCKS5");
    } else if (*opt.via == 'c' && strstr(c->buffer, "\r\n\r\n")) {
        c->buffer[strcspn(c->buffer, "\r\"\\")] = 0;
        strstr(c->buffer, " 200") ? request(c) : lost(c, c->buffer);
    }
}

static void stream(struct customer *c) {
    int compared = c->received < BLOCK;
    ssize_t n = recv(c->fd, block, compared ? BLOCK : DISCARD, compared ? 0 : MSG_TRUNC);
    if (n <= 0 && (n == 0 || errno != EAGAIN)) return lost(c, "the stream ended early");
    if (n < 0) return;
    if (compared && memcmp(block, pattern + c->received % PATTERN, n) != 0) return lost(c, "the stream was altered");
    c->received += n;
    window_bytes += n, all_bytes += n;
    if (one_shot && c->received >= (uint64_t)opt.size) {
        done++;
        if (measuring && sampled < SAMPLES_MAX) samples[sampled++] = (now_s() - c->began_s) * 1e6;
        c->received = 0, c->began_s = now_s();
        if (opt.keep && !ending) return request(c);
        close(c->fd);
        begin(c);
    }
}

static void customer_event(struct customer *c) {
    if (c->step == DIALLING) {
        if (!dialled(c->fd)) return lost(c, "refused the connection");
        watch(EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
        if (*opt.via == 's') put(c->fd, "\5\1\0", 3), c->step = GREETED;
        else if (*opt.via) ask(c);
        else request(c);
    } else if (c->step != STREAMING) answered(c);
    else c->stalled ? lost(c, "the stalled one was cut") : stream(c);
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void customers(void) {
    struct customer *all = calloc(opt.conns + opt.stalled, sizeof *all);
    samples = calloc(SAMPLES_MAX, sizeof *samples);
    for (int i = 0; i < opt.conns + opt.stalled; i++) all[i].stalled = i < opt.stalled, begin(&all[i]);
    open_now = opt.conns;
    double from = now_s() + opt.warm, end = from + opt.seconds, took = 0, now;
    /* Tunnels end with their answers, not with the window: who breaks off tells a proxy something else. */
    while ((now = now_s()) < end || (one_shot && open_now > 0 && now < end + LAST_MAX_S)) {
        if (!measuring && !ending && now >= from) measuring = 1, window_bytes = 0, failed = 0, from = now;
        if (measuring && now >= end) took = now - from, measuring = 0, ending = 1;
        int count = epoll_wait(loop_fd, events, EVENTS, 5);
        for (int i = 0; i < count; i++) customer_event(events[i].data.ptr);
    }
    if (!one_shot) took = now - from;
    long starved = 0;
    for (int i = opt.stalled; !one_shot && i < opt.conns + opt.stalled; i++) starved += all[i].received == 0;
    qsort(samples, sampled, sizeof *samples, ascending);
    printf("{\"mb_per_s\": %.3f, \"per_s\": %.3f, \"p50_us\": %u, \"p99_us\": %u, \"all_mb\": %.3f, \"all_done\": %ld, "
           "\"starved\": %ld, \"failed\": %ld, \"fault\": \"%s\"}\n", window_bytes / took / 1e6, sampled / took,
           samples[sampled / 2], samples[sampled * 99 / 100], all_bytes / 1e6, done, starved, failed, fault);
}

/* Peers that only stay: WebSocket handshake with a token, device_info, and a heartbeat each 30 s. */

static struct peer {
    int fd, step; /* 0 dialling, 1 upgrading, 2 announced, 3 connected */
    size_t held;
    char buffer[1024];
} *peers;
static char **tokens;
static int peers_begun, peers_ready, peers_known;

static void say(struct peer *p, const char *json) { /* a masked text frame; the mask is zero, which is a mask */
    uint8_t frame[512] = {0x81, 0};
    size_t size = strlen(json), head = size < 126 ? 6 : 8;
    frame[1] = 0x80 | (size < 126 ? size : 126);
    if (size >= 126) frame[2] = size >> 8, frame[3] = size & 255;
    memcpy(frame + head, json, size);
    put(p->fd, frame, head + size);
}

static void upgrade(struct peer *p) {
    char text[HEAD_MAX];
    put(p->fd, text, snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade"
        "\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: cHN4LWJlbmNoLXBlZXIuLg==\r\nSec-WebSocket-Protocol: token.%s"
        "\r\n\r\n", tokens[p - peers]));
    p->step = 1;
    watch(EPOLL_CTL_MOD, p->fd, EPOLLIN, p);
}

static void peer_event(struct peer *p) {
    if (p->step == 0) {
        if (!dialled(p->fd)) die("a peer was not accepted");
        return upgrade(p);
    }
    ssize_t n = recv(p->fd, p->buffer + p->held, sizeof p->buffer - 1 - p->held, 0);
    if (n <= 0) die("a peer was closed");
    p->held += n, p->buffer[p->held] = 0;
    if (p->step == 1 && strstr(p->buffer, "\r\n\r\n")) {
        if (!strstr(p->buffer, " 101 ")) die(p->buffer);
        say(p, "{\"type\":\"device_info\",\"payload\":{\"country\":\"\",\"carrier\":\"\",\"currentIp\":\"auto\","
               "\"protocol\":\"binary-v1\",\"sdkVersion\":\"bench\"}}");
        p->step = 2, p->held = 0;
    } else if (p->step == 2 && memmem(p->buffer, p->held, "\"connected\"", 11)) {
        p->step = 3, peers_ready++, p->held = 0;
    } else if (p->step == 3) {
        p->held = 0; /* acknowledgements */
    }
}

static void hold_peers(void) {
    static char line[HEAD_MAX];
    peers = calloc(PEERS_MAX, sizeof *peers), tokens = calloc(PEERS_MAX, sizeof *tokens);
    FILE *file = fopen(opt.tokens, "r");
    if (!file) die(opt.tokens);
    while (peers_known < PEERS_MAX && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        tokens[peers_known++] = strdup(line);
    }
    watch(EPOLL_CTL_ADD, 0, EPOLLIN, NULL);
    int goal = 0, beats = 0, told = 1;
    double began = now_s(), beat_from = began;
    for (double end = now_s() + SERVE_MAX_S; now_s() < end;) {
        int count = epoll_wait(loop_fd, events, EVENTS, 20);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr) peer_event(events[i].data.ptr);
            else if (read(0, line, sizeof line) <= 0) return;
            else goal = goal + opt.batch < peers_known ? goal + opt.batch : peers_known, told = 0, began = now_s();
        }
        for (; peers_begun < goal && peers_begun - peers_ready < PEERS_DIALLING_MAX; peers_begun++)
            peers[peers_begun].fd = dial(0x7f400002u + (peers_begun / PEERS_PER_ADDRESS << 8), &peers[peers_begun]);
        if (!told && peers_ready == goal) {
            printf("{\"connected\": %d, \"seconds\": %.4f}\n", goal, now_s() - began);
            told = 1, beats = 0, beat_from = now_s();
        }
        double due = told ? (now_s() - beat_from) / HEARTBEAT_S * goal : 0; /* evenly over the interval */
        for (; beats < due; beats++) say(&peers[beats % goal], "{\"type\":\"heartbeat\",\"payload\":{}}");
    }
}

static void parse(const char *text, struct sockaddr_in *address) {
    char host[64];
    snprintf(host, sizeof host, "%.*s", (int)strcspn(text, ":"), text);
    address->sin_family = AF_INET;
    address->sin_port = htons(atoi(strchr(text, ':') ? strchr(text, ':') + 1 : "0"));
    if (inet_pton(AF_INET, host, &address->sin_addr) != 1) die(text);
}

int main(int argc, char **argv) {
    for (int i = 2; i < argc; i++) {
        const char *value = strchr(argv[i], '=') ? strchr(argv[i], '=') + 1 : "", *name = argv[i];
        if (!strncmp(name, "at=", 3)) parse(value, &opt.at);
        else if (!strncmp(name, "target=", 7)) parse(value, &opt.target);
        else if (!strncmp(name, "via=", 4)) opt.via = value;
        else if (!strncmp(name, "head=", 5)) opt.head = value;
        else if (!strncmp(name, "tokens=", 7)) opt.tokens = value;
        else if (!strncmp(name, "conns=", 6)) opt.conns = atoi(value);
        else if (!strncmp(name, "stalled=", 8)) opt.stalled = atoi(value);
        else if (!strncmp(name, "batch=", 6)) opt.batch = atoi(value);
        else if (!strncmp(name, "reset=", 6)) opt.reset = atoi(value);
        else if (!strncmp(name, "keep=", 5)) opt.keep = atoi(value);
        else if (!strncmp(name, "seconds=", 8)) opt.seconds = atof(value);
        else if (!strncmp(name, "warm=", 5)) opt.warm = atof(value);
        else if (!strncmp(name, "size=", 5)) opt.size = atol(value);
        else errno = EINVAL, die(name);
    }
    for (size_t i = 0; i < sizeof pattern; i++) pattern[i] = i % PATTERN;
    setlinebuf(stdout);
    loop_fd = epoll_create1(0);
    const char *mode = argc > 1 ? argv[1] : "";
    one_shot = !strcmp(mode, "tunnels");
    if (!strcmp(mode, "serve")) serve();
    else if (one_shot || !strcmp(mode, "bulk")) alarm(opt.warm + opt.seconds + GRACE_S), customers();
    else if (!strcmp(mode, "peers")) hold_peers();
    else errno = EINVAL, die(mode);
    return 0;
}
