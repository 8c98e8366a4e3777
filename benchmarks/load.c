/* Open event streams and report what arrives on them, as JSON on standard output.
 *
 *   load [-e EVENTS] [-n TIMES] [-s SECONDS] [-w WINDOW] [-h HEADER] [-d] PORT STREAMS PATH
 *
 * A `{}` in PATH becomes the number of the stream. At most WINDOW connects wait for their answer at once.
 * The first line tells that all streams are open, or refused. The second tells what has come, when every
 * open stream has had EVENTS events, or SECONDS have passed, or standard input has ended. With -n there are
 * as many such lines, each about EVENTS events more. With -d (deaf) nothing is read but the head of the
 * answers.
 *
 * The streams come from 127.0.0.1, and from 10,000 on from 127.0.0.2 and so on. An address has about 28,000
 * ports, and once half of them are taken the kernel needs a millisecond to find the next.
 *
 * An event of interest is a line `data:` with "seq": its number from 0 up on this stream, and "t": the
 * nanoseconds of CLOCK_MONOTONIC at which it was published. Any other is one of the component's own. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Where the next byte of an answer stands: in its head, in the size of a chunk, in its data, in the line
 * end behind it, or in a body without chunks. */
enum part { CONNECT, HEAD, SIZE, DATA, AFTER, PLAIN, GONE };

/* The start of a line is enough: it holds the number and the time. */
#define KEPT 120
#define STREAMS_OF_AN_ADDRESS 10000

struct stream {
    enum part part;
    int fd, matched, chunked, status, kept;
    long left;
    long long last;
    unsigned long seen;
    char line[KEPT + 1];
};

static int port, window = 200, deaf, stream_count, times = 1, watch;
static const char *path, *header = "";
static unsigned long expected;
static double seconds = 120;

static struct stream *streams;
static int begun, waiting, opened, refused, lost, caught_up;
static unsigned long events, missing, duplicates, gaps, received;
static double *delays, started_at, opened_at, first_at, last_at, caught_up_at;
static size_t delay_count, delay_room;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void note_delay(double delay) {
    if (delay_count == delay_room) {
        delay_room = delay_room ? 2 * delay_room : 1 << 16;
        delays = realloc(delays, delay_room * sizeof *delays);
        if (!delays) abort();
    }
    delays[delay_count++] = delay > 0 ? delay : 0;
}

static void take_event(struct stream *s) {
    char *number = strstr(s->line, "\"seq\":"), *stamp = strstr(s->line, "\"t\":");
    if (!number) return;
    long long here = strtoll(number + 6, NULL, 10);
    if (here <= s->last) duplicates++;
    else if (s->last >= 0) missing += (unsigned long)(here - s->last - 1);
    if (here > s->last) s->last = here;
    last_at = now();
    if (!events++) first_at = last_at;
    if (stamp) note_delay(last_at - (double)strtoull(stamp + 4, NULL, 10) / 1e9);
    if (++s->seen == expected) caught_up++, caught_up_at = last_at;
}

static void take_line(struct stream *s) {
    s->line[s->kept] = 0;
    if (!strncmp(s->line, "data:", 5)) take_event(s);
    else if (!strcmp(s->line, "event: livepush.gap")) gaps++;
    s->kept = 0;
}

/* Take bytes of the body, which may begin and end anywhere in a line. */
static void take_body(struct stream *s, const char *at, size_t size) {
    while (size) {
        const char *end = memchr(at, '\n', size);
        size_t length = end ? (size_t)(end - at) : size, room = (size_t)(KEPT - s->kept);
        size_t kept = length < room ? length : room;
        memcpy(s->line + s->kept, at, kept);
        s->kept += (int)kept;
        if (!end) return;
        take_line(s);
        at = end + 1, size -= length + 1;
    }
}

static void forget(struct stream *s) {
    if (s->part <= HEAD) refused++, waiting--;
    else lost++;
    close(s->fd);
    s->part = GONE;
}

static void open_stream(struct stream *s) {
    waiting--, s->kept = 0;
    if (s->status != 200) {
        refused++, s->part = GONE, close(s->fd);
        return;
    }
    opened++, opened_at = now();
    s->part = s->chunked ? SIZE : PLAIN;
    if (deaf) epoll_ctl(watch, EPOLL_CTL_DEL, s->fd, NULL);
}

static void take_head_line(struct stream *s) {
    s->line[s->kept] = 0;
    if (!s->status) s->status = s->kept > 9 ? atoi(s->line + 9) : -1;
    else if (!strncasecmp(s->line, "transfer-encoding: chunked", 26)) s->chunked = 1;
    int last = s->kept == 0;
    s->kept = 0;
    if (last) open_stream(s);
}

/* Take one byte of what stands around the body. */
static void take_frame(struct stream *s, char byte) {
    if (byte == '\r') return;
    if (s->part == HEAD) {
        if (byte == '\n') take_head_line(s);
        else if (s->kept < KEPT) s->line[s->kept++] = byte;
    } else if (s->part == AFTER) {
        s->part = SIZE;
    } else if (byte == '\n') {
        s->part = s->left ? DATA : AFTER;
    } else {
        s->left = 16 * s->left + (byte <= '9' ? byte - '0' : (byte | 32) - 'a' + 10);
    }
}

static void take(struct stream *s, const char *at, size_t size) {
    received += size;
    while (size && s->part != GONE) {
        if (s->part == PLAIN) {
            take_body(s, at, size);
            return;
        }
        if (s->part != DATA) {
            take_frame(s, *at++), size--;
            continue;
        }
        size_t here = size < (size_t)s->left ? size : (size_t)s->left;
        take_body(s, at, here);
        s->left -= (long)here, at += here, size -= here;
        if (!s->left) s->part = AFTER;
    }
}

/* Bind a socket to one of the addresses of this machine; connect() then chooses the port. */
static void take_address(int fd, uint32_t number) {
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + number)};
    int on = 1;
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (number && bind(fd, (void *)&own, sizeof own) < 0) perror("load: bind");
}

static void begin(int number) {
    struct stream *s = &streams[number];
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    s->last = -1, s->part = CONNECT, waiting++;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (s->fd >= 0) take_address(s->fd, (uint32_t)(number / STREAMS_OF_AN_ADDRESS));
    int small = 4096;
    if (s->fd >= 0 && deaf) setsockopt(s->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    struct epoll_event want = {.events = EPOLLOUT, .data.ptr = s};
    if (s->fd < 0 || (connect(s->fd, (void *)&server, sizeof server) < 0 && errno != EINPROGRESS)) forget(s);
    else epoll_ctl(watch, EPOLL_CTL_ADD, s->fd, &want);
}

static void ask(struct stream *s) {
    char request[4096], *mark = strstr(path, "{}");
    int before = mark ? (int)(mark - path) : (int)strlen(path), error = 0;
    int size = snprintf(request, sizeof request, "GET %.*s", before, path);
    if (mark) size += snprintf(request + size, sizeof request - (size_t)size, "%ld%s", s - streams, mark + 2);
    size += snprintf(request + size, sizeof request - (size_t)size,
                     " HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n%s%s\r\n", port, header,
                     *header ? "\r\n" : "");
    socklen_t length = sizeof error;
    getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    struct epoll_event want = {.events = EPOLLIN, .data.ptr = s};
    if (error || write(s->fd, request, (size_t)size) != size) forget(s);
    else s->part = HEAD, epoll_ctl(watch, EPOLL_CTL_MOD, s->fd, &want);
}

static void attend(struct stream *s) {
    static char buffer[1 << 18];
    if (s->part == GONE) return;
    if (s->part == CONNECT) {
        ask(s);
        return;
    }
    ssize_t size = read(s->fd, buffer, sizeof buffer);
    if (size > 0) take(s, buffer, (size_t)size);
    else if (size == 0 || (errno != EAGAIN && errno != EINTR)) forget(s);
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double delay_of(double share) {
    return delay_count ? 1000 * delays[(size_t)((double)(delay_count - 1) * share)] : 0;
}

static void report(void) {
    if (delay_count) qsort(delays, delay_count, sizeof *delays, by_size);
    printf("{\"open\":%d,\"refused\":%d,\"lost\":%d,\"connect_s\":%.4f,\"events\":%lu,\"missing\":%lu,"
           "\"duplicates\":%lu,\"gaps\":%lu,\"bytes\":%lu,\"first_ms\":%.3f,\"p50_ms\":%.3f,\"p99_ms\":%.3f,"
           "\"max_ms\":%.3f,\"deliver_s\":%.4f,\"caught_up\":%d,\"caught_up_s\":%.4f}\n",
           opened, refused, lost, opened ? opened_at - started_at : 0, events, missing, duplicates, gaps,
           received, delay_of(0), delay_of(0.5), delay_of(0.99), delay_of(1), last_at - first_at, caught_up,
           caught_up ? caught_up_at - started_at : 0);
    fflush(stdout);
}

/* Report, and count from here on what comes next. */
static void report_and_restart(void) {
    report();
    delay_count = 0, events = 0, caught_up = 0;
    for (struct stream *s = streams; s < streams + stream_count; s++) {
        if (s->part != GONE && (s->seen -= expected) >= expected) caught_up++;
    }
}

static int take_arguments(int count, char **values) {
    for (int option; (option = getopt(count, values, "e:n:s:w:h:d")) != -1;) {
        if (option == 'e') expected = strtoul(optarg, NULL, 10);
        else if (option == 'n') times = atoi(optarg);
        else if (option == 's') seconds = atof(optarg);
        else if (option == 'w') window = atoi(optarg);
        else if (option == 'h') header = optarg;
        else if (option == 'd') deaf = 1;
        else return 0;
    }
    if (count - optind != 3) return 0;
    port = atoi(values[optind]), stream_count = atoi(values[optind + 1]), path = values[optind + 2];
    return port > 0 && stream_count > 0;
}

/* Whether standard input has ended: whoever started this has had enough. */
static int told_to_end(void) {
    char byte;
    return read(STDIN_FILENO, &byte, 1) == 0;
}

int main(int count, char **values) {
    if (!take_arguments(count, values)) {
        fprintf(stderr, "usage: load [-e EVENTS] [-n TIMES] [-s SECONDS] [-w WINDOW] [-h HEADER] [-d] "
                        "PORT STREAMS PATH\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK);
    watch = epoll_create1(0);
    streams = calloc((size_t)stream_count, sizeof *streams);
    if (!streams || watch < 0) return 1;
    static struct epoll_event ready[512];
    int said = 0;
    for (started_at = now(); now() < started_at + seconds && !told_to_end();) {
        while (begun < stream_count && waiting < window) begin(begun++);
        int some = epoll_wait(watch, ready, 512, 10);
        for (int i = 0; i < some; i++) attend(ready[i].data.ptr);
        if (!said && begun == stream_count && !waiting) {
            said = 1;
            report();
        }
        if (said && expected && caught_up + lost >= opened) {
            if (!--times) break;
            report_and_restart();
        }
    }
    if (!said) report();
    report();
    return 0;
}
