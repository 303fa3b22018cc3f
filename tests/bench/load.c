// The load generator of scripts/bench: one thread, epoll, HTTP/1.1 GETs whose bytes are counted, on
// connections that are set up before the clock runs. wrk cannot leave its own connecting out of the
// measurement, and h2load cannot wait for a signal; both matter where CPU per exchange is what is asked.
//
//   load exchange HOST PORT CONNECTIONS SECONDS [RATE [even]]
//       exchanges on established connections; RATE per second: all ask together, or evenly in turn
//   load connect HOST PORT CONNECTIONS SECONDS
//       a new connection for each exchange
//   load hold HOST PORT CONNECTIONS
//       one exchange on each, then idle
//   load sweep HOST,HOST... PORT 1
//       one new connection and exchange with each host, one by one; nothing is set up before; again with
//       every further line on standard input
//
// Prints "ready" when set up, waits for a line on standard input, works, prints one JSON object, and keeps
// what is open until standard input ends. Any broken or short answer is an error, counted and named.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { kBuckets = 2000000 }; /* latency in microseconds; the last bucket takes the rest */
enum state { kIdle, kConnecting, kWaiting };

struct connection {
  int fd;
  enum state state;
  size_t got;
  uint64_t since; /* when the exchange should have begun */
};

static struct sockaddr_storage target;
static socklen_t target_length;
static struct connection* all;
static int count, epoll, closing; /* closing: one exchange per connection, ended by the server */
static size_t answer;             /* bytes of one answer, learnt from the first */
static uint32_t* latency;
static uint64_t done, errors, bytes, late;
static char first_error[200];
static char buffer[1 << 16];
static char request[200];

static uint64_t now_ns(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static void fail(const char* what, int code) {
  if (errors++ == 0)
    snprintf(first_error, sizeof first_error, "%s: %s", what, code ? strerror(code) : "short answer");
}

static void stop(const char* what) {
  fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void watch(struct connection* one, int operation, uint32_t events) {
  struct epoll_event event = {.events = events, .data.ptr = one};
  if (epoll_ctl(epoll, operation, one->fd, &event) < 0) stop("epoll_ctl");
}

static void forget(struct connection* one) {
  close(one->fd);
  one->fd = -1;
  one->state = kIdle;
}

static void dial(struct connection* one, uint64_t since) {
  int on = 1;
  one->fd = socket(target.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (one->fd < 0) stop("socket");
  setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  one->state = kConnecting;
  one->since = since;
  one->got = 0;
  if (connect(one->fd, (struct sockaddr*)&target, target_length) < 0 && errno != EINPROGRESS) {
    fail("connect", errno);
    forget(one);
    return;
  }
  watch(one, EPOLL_CTL_ADD, EPOLLOUT);
}

static int ask(struct connection* one) {
  size_t length = strlen(request);
  one->got = 0;
  if (send(one->fd, request, length, MSG_NOSIGNAL) != (ssize_t)length) return fail("send", errno), -1;
  one->state = kWaiting;
  return 0;
}

static void finish(struct connection* one, uint64_t now) {
  uint64_t took = (now - one->since) / 1000;
  latency[took < kBuckets ? took : kBuckets - 1]++;
  done++;
  one->state = kIdle;
}

/* The size of an answer, from its first bytes; 0 while the head is not complete. */
static size_t size_of(const char* text, size_t length) {
  const char* end = memmem(text, length, "\r\n\r\n", 4);
  const char* field = memmem(text, length, "Content-Length: ", 16);
  return end && field ? (size_t)(end + 4 - text) + strtoul(field + 16, NULL, 10) : 0;
}

/* Reads what has come. Returns 1 when the exchange is complete, -1 when it broke. */
static int take(struct connection* one) {
  for (;;) {
    ssize_t n = recv(one->fd, buffer, sizeof buffer, 0);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n < 0) return fail("recv", errno), -1;
    if (n == 0) return closing && one->got == answer ? 1 : (fail("recv", 0), -1);
    if (!answer && one->got == 0) answer = size_of(buffer, (size_t)n);
    one->got += (size_t)n;
    bytes += (uint64_t)n;
    if (!closing && answer && one->got == answer) return 1;
    if ((size_t)n < sizeof buffer && !closing) return 0;
  }
}

/* One event of one connection. Returns 1 when its exchange has ended, well or not. */
static int step(struct connection* one, uint32_t events) {
  if (one->state == kConnecting) {
    int code = 0;
    socklen_t length = sizeof code;
    getsockopt(one->fd, SOL_SOCKET, SO_ERROR, &code, &length);
    if (code || (events & EPOLLERR)) return fail("connect", code), forget(one), 1;
    watch(one, EPOLL_CTL_MOD, EPOLLIN);
    if (ask(one) < 0) return forget(one), 1;
    return 0;
  }
  int how = take(one);
  if (how == 0) return 0;
  if (how > 0) finish(one, now_ns());
  if (how < 0 || closing) forget(one);
  return 1;
}

static int turn(int64_t timeout_ns, void (*ended)(struct connection*)) {
  struct epoll_event events[256];
  struct timespec wait = {timeout_ns / 1000000000, timeout_ns % 1000000000};
  int n = epoll_pwait2(epoll, events, 256, timeout_ns < 0 ? NULL : &wait, NULL);
  for (int i = 0; i < n; i++) {
    struct connection* one = events[i].data.ptr;
    if (one->fd >= 0 && step(one, events[i].events) && ended) ended(one);
  }
  return n;
}

static int busy(void) {
  int found = 0;
  for (int i = 0; i < count; i++) found += all[i].state != kIdle;
  return found;
}

/* Opens every connection, a few at a time, and makes one exchange on each. */
static void set_up(void) {
  uint64_t limit = now_ns() + 60000000000u;
  for (int i = 0; i < count; i++) {
    dial(&all[i], now_ns());
    while (busy() >= 64 || (i == count - 1 && busy())) {
      if (turn(1000000000, NULL) == 0 && now_ns() > limit) {
        fail("set up", ETIMEDOUT);
        return;
      }
    }
    if (errors) return;
  }
}

static uint64_t end_at;

static void exchange_again(struct connection* one) {
  uint64_t now = now_ns();
  if (one->fd < 0 || now >= end_at) return;
  one->since = now;
  if (ask(one) < 0) forget(one);
}

static void connect_again(struct connection* one) {
  uint64_t now = now_ns();
  if (now >= end_at) return;
  dial(one, now);
}

static void run_saturated(void) {
  for (int i = 0; i < count; i++) closing ? connect_again(&all[i]) : exchange_again(&all[i]);
  uint64_t limit = end_at + 2000000000u;
  for (uint64_t now = now_ns(); now < end_at || (busy() && now < limit); now = now_ns()) {
    uint64_t next = now < end_at ? end_at : limit;
    turn(next > now ? (int64_t)(next - now) : 0, closing ? connect_again : exchange_again);
  }
  if (busy()) fail("unanswered at the end", ETIMEDOUT);
}

static void run_at_rate(double rate, int even) {
  uint64_t start = now_ns(), number = 0;
  int group = even ? 1 : count;
  for (;;) {
    uint64_t due = start + (uint64_t)((double)number * 1e9 / rate), now = now_ns();
    if (due >= end_at) break;
    if (due > now) {
      turn((int64_t)(due - now), NULL);
      continue;
    }
    for (int i = 0; i < group; i++, number++) {
      struct connection* one = &all[number % (uint64_t)count];
      if (one->state != kIdle || one->fd < 0) {
        late++;
        continue;
      }
      one->since = due;
      if (ask(one) < 0) forget(one);
    }
  }
  uint64_t limit = now_ns() + 2000000000u;
  while (busy() && now_ns() < limit) turn(100000000, NULL);
}

static double quantile(double part) {
  uint64_t wanted = (uint64_t)((double)done * part), seen = 0;
  for (int i = 0; i < kBuckets; i++) {
    seen += latency[i];
    if (seen > wanted) return i + 0.5;
  }
  return 0;
}

static void wait_line(void) {
  char line[16];
  if (!fgets(line, sizeof line, stdin)) exit(0);
}

static void aim(const char* host, int port) {
  struct sockaddr_in* v4 = (void*)&target;
  struct sockaddr_in6* v6 = (void*)&target;
  if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons((uint16_t)port);
    target_length = sizeof *v4;
  } else if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons((uint16_t)port);
    target_length = sizeof *v6;
  } else {
    errno = EINVAL;
    stop(host);
  }
}

/* Host by host, so that the first connection to each is alone. */
static void sweep(const char* hosts, int port) {
  char *kept = strdup(hosts), *rest = kept;
  for (char* host; (host = strsep(&rest, ",")) != NULL;) {
    aim(host, port);
    dial(&all[0], now_ns());
    uint64_t limit = now_ns() + 10000000000u;
    while (busy() && now_ns() < limit) turn(1000000000, NULL);
    if (busy()) {
      fail(host, ETIMEDOUT);
      forget(&all[0]);
    }
  }
  free(kept);
}

int main(int argc, char** argv) {
  if (argc < 5) {
    fprintf(stderr, "usage: load exchange|connect|hold HOST PORT CONNECTIONS [SECONDS [RATE [even]]]\n");
    return 2;
  }
  const char* mode = argv[1];
  double seconds = argc > 5 ? atof(argv[5]) : 0, extra = argc > 6 ? atof(argv[6]) : 0;
  int sweeping = strcmp(mode, "sweep") == 0;
  if (!sweeping) aim(argv[2], atoi(argv[3]));
  count = atoi(argv[4]);
  closing = sweeping || strcmp(mode, "connect") == 0;
  snprintf(request, sizeof request, "GET / HTTP/1.1\r\nHost: bench\r\n%s\r\n",
           closing ? "Connection: close\r\n" : "");
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  all = calloc((size_t)count, sizeof *all);
  latency = calloc(kBuckets, sizeof *latency);
  epoll = epoll_create1(EPOLL_CLOEXEC);
  for (int i = 0; i < count; i++) all[i].fd = -1;

  int wanted = count;
  if (closing) count = 1; /* one exchange is enough to know the size of an answer */
  if (!sweeping) set_up();
  count = wanted;
  if (errors) {
    fprintf(stderr, "load: set up: %s\n", first_error);
    return 1;
  }
  puts("ready");
  fflush(stdout);
  do {
    wait_line();
    done = bytes = 0;
    memset(latency, 0, kBuckets * sizeof *latency);
    uint64_t start = now_ns();
    end_at = start + (uint64_t)(seconds * 1e9);
    if (sweeping)
      sweep(argv[2], atoi(argv[3]));
    else if (strcmp(mode, "exchange") == 0 && extra > 0)
      run_at_rate(extra, argc > 7);
    else if (strcmp(mode, "hold") != 0)
      run_saturated();
    double took = (double)(now_ns() - start) / 1e9;
    printf(
        "{\"done\": %lu, \"errors\": %lu, \"error\": \"%s\", \"bytes\": %lu, \"late\": %lu, \"seconds\": "
        "%.4f, "
        "\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f}\n",
        done, errors, first_error, bytes, late, took, quantile(0.5), quantile(0.9), quantile(0.99));
    fflush(stdout);
  } while (sweeping);
  wait_line();
  return 0;
}
