/*
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * wanem - a wide-area link between two network namespaces, in user space.
 *
 * Two TUN devices, one per namespace, are joined by this process, which adds
 * one-way delay, jitter, a rate limit with a bounded queue, random or bursty
 * loss and (for integrity tests) silent payload corruption, per direction.
 * It needs neither netem nor any qdisc: only /dev/net/tun, ip(8) and root.
 *
 * TCP crosses as 64 KiB "super packets" (TUN with vnet_hdr + TSO), so a few
 * thousand system calls a second carry a gigabit; loss is nevertheless drawn
 * per wire segment, by cutting the lost segments out of the super packet.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <math.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define VH ((int)sizeof(struct virtio_net_hdr))
#define MAXPKT (VH + 65536)
#define BATCH 64                 /* packets read from one side per wake-up */
#define RUNDIR "/run/wanem"
#define FRAMING 38               /* Ethernet preamble, header, FCS, gap */

struct pkt { struct pkt *next; uint64_t due; uint32_t len; uint8_t d[]; };

struct dir {                     /* one direction of the link */
    double rate, loss, burst, corrupt;        /* bit/s (0: none), fractions */
    uint64_t delay, jitter, queue;            /* ns, ns, bytes (0: one BDP) */
    int in, out;                              /* tun descriptors */
    struct pkt *head, **tail;
    uint64_t free_at, last_due, held;         /* link busy until; bytes held */
    bool bad;                                 /* in a loss burst */
    uint64_t pkts, bytes, lost, overflow, corrupted, errors;
};

static struct dir D[2];                       /* [0]: A to B, [1]: B to A */
static char ns_name[2][64], sock_path[108];
static bool made_ns[2], quiet;
static int mtu = 1500, ctl_fd = -1, home_ns = -1;
static const char *net = "10.77.0";

static void die(const char *fmt, ...)
{
    va_list ap;
    int e = errno;
    fputs("wanem: ", stderr);
    va_start(ap, fmt); vfprintf(stderr, fmt, ap); va_end(ap);
    if (e) fprintf(stderr, ": %s", strerror(e));
    fputc('\n', stderr);
    exit(2);
}

static void bad_use(const char *what, const char *v)
{
    errno = 0;
    die("%s: cannot read '%s' (see wanem --help)", what, v);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

static uint64_t rng = 0x9e3779b97f4a7c15u;
static double rnd(void)                       /* xorshift64*, in [0,1) */
{
    rng ^= rng >> 12; rng ^= rng << 25; rng ^= rng >> 27;
    return ((rng * 0x2545f4914f6cdd1du) >> 11) * 0x1p-53;
}

/* ---- values with units: "80ms", "1gbit", "0.1%", "4M"; "x/y" is A>B/B>A ---- */

static double one(const char *what, const char *s, const char *units)
{
    static const struct { const char *u; double f; char k; } T[] = {
        {"ns",1,'t'},{"us",1e3,'t'},{"ms",1e6,'t'},{"s",1e9,'t'},
        {"bit",1,'r'},{"kbit",1e3,'r'},{"mbit",1e6,'r'},{"gbit",1e9,'r'},
        {"%",.01,'p'},{"",1,'p'},{"",1,'n'},
        {"",1,'b'},{"k",1024,'b'},{"m",1048576,'b'},{"g",1073741824,'b'},
    };
    char *end;
    double v = strtod(s, &end);
    if (end == s || v < 0 || !isfinite(v)) bad_use(what, s);
    for (size_t i = 0; i < sizeof T / sizeof *T; i++)
        if (T[i].k == *units && !strcasecmp(T[i].u, end)) {
            if (*units == 'p' && v * T[i].f > 1) break;
            return v * T[i].f;
        }
    if (v == 0 && !*end) return 0;
    bad_use(what, s);
    return 0;
}

static void two(const char *what, const char *s, const char *units, double out[2])
{
    char buf[128], *slash;
    if (snprintf(buf, sizeof buf, "%s", s) >= (int)sizeof buf) bad_use(what, s);
    if ((slash = strchr(buf, '/'))) *slash++ = 0;
    out[0] = one(what, buf, units);
    out[1] = slash ? one(what, slash, units) : out[0];
}

static bool set_option(const char *k, const char *v)
{
    double x[2];
    const char *u = !strcmp(k, "rate") ? "r" : !strcmp(k, "queue") ? "b" :
        !strcmp(k, "loss") || !strcmp(k, "corrupt") ? "p" : !strcmp(k, "burst") ? "n" :
        !strcmp(k, "rtt") || !strcmp(k, "delay") || !strcmp(k, "jitter") ? "t" : NULL;
    if (!u) return false;
    two(k, v, u, x);
    for (int i = 0; i < 2; i++) {
        if (!strcmp(k, "rate")) D[i].rate = x[i];
        else if (!strcmp(k, "queue")) D[i].queue = x[i];
        else if (!strcmp(k, "loss")) D[i].loss = x[i];
        else if (!strcmp(k, "corrupt")) D[i].corrupt = x[i];
        else if (!strcmp(k, "burst")) D[i].burst = x[i];
        else if (!strcmp(k, "rtt")) D[i].delay = x[i] / 2;
        else if (!strcmp(k, "delay")) D[i].delay = x[i];
        else D[i].jitter = x[i];
    }
    return true;
}

/* ---- namespaces and devices ---- */

static int ip_cmd(bool may_fail, const char *fmt, ...)
{
    char cmd[400], *argv[40] = {"ip"}, *save, *w;
    int n = 1, st;
    va_list ap;
    va_start(ap, fmt); vsnprintf(cmd, sizeof cmd, fmt, ap); va_end(ap);
    for (w = strtok_r(cmd, " ", &save); w && n < 39; w = strtok_r(NULL, " ", &save))
        argv[n++] = w;
    pid_t p = fork();
    if (p < 0) die("fork");
    if (!p) {
        if (may_fail && freopen("/dev/null", "w", stderr) == NULL) _exit(126);
        execvp("ip", argv);
        _exit(127);
    }
    while (waitpid(p, &st, 0) < 0 && errno == EINTR) ;
    st = WIFEXITED(st) ? WEXITSTATUS(st) : 128;
    if (st && !may_fail) { errno = 0; die("'ip %s ...' failed (%d)", argv[1], st); }
    return st;
}

static void enter_ns(const char *name)
{
    char path[120];
    snprintf(path, sizeof path, "/run/netns/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, CLONE_NEWNET)) die("enter namespace %s", name);
    close(fd);
}

static void go_home(void) { if (setns(home_ns, CLONE_NEWNET)) die("leave namespace"); }

static int make_side(int i)
{
    char path[120];
    snprintf(path, sizeof path, "/run/netns/%s", ns_name[i]);
    if (access(path, F_OK)) { ip_cmd(false, "netns add %s", ns_name[i]); made_ns[i] = true; }
    enter_ns(ns_name[i]);
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) die("/dev/net/tun");
    struct ifreq r = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    strcpy(r.ifr_name, "wan0");
    if (ioctl(fd, TUNSETIFF, &r)) die("create wan0 in %s", ns_name[i]);
    int sz = VH;
    if (ioctl(fd, TUNSETVNETHDRSZ, &sz)) die("TUNSETVNETHDRSZ");
    if (ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)) die("TUNSETOFFLOAD");
    /* one super packet should not hold the link for more than ~1 ms */
    double ms = D[i].rate ? D[i].rate / 8e3 : 65536;
    int gso = ms > 65536 ? 65536 : ms < 2 * mtu ? 2 * mtu : (int)ms;
    ip_cmd(false, "link set lo up");
    ip_cmd(false, "link set wan0 mtu %d gso_max_size %d txqueuelen 10000 up", mtu, gso);
    ip_cmd(false, "addr add %s.%d/24 dev wan0", net, i + 1);
    ip_cmd(true, "-6 addr add fd77::%d/64 dev wan0 nodad", i + 1);
    go_home();
    return fd;
}

static void cleanup(void)
{
    static bool done;
    if (done) return;
    done = true;
    for (int i = 0; i < 2; i++) {             /* closing a tun removes wan0 */
        if (D[i].in > 0) close(D[i].in);
        if (made_ns[i]) ip_cmd(true, "netns del %s", ns_name[i]);
    }
    if (ctl_fd >= 0) unlink(sock_path);       /* last: 'down' waits for this */
}

/* ---- packets ---- */

static uint32_t sum16(const uint8_t *p, int n, uint32_t s)
{
    for (; n > 1; p += 2, n -= 2) s += p[0] << 8 | p[1];
    return n ? s + (p[0] << 8) : s;
}
static uint16_t fold(uint32_t s) { while (s >> 16) s = (s & 0xffff) + (s >> 16); return s; }
static void put16(uint8_t *p, unsigned v) { p[0] = v >> 8; p[1] = v; }

/* header bytes before the TCP payload of a TSO packet; 0 if it is not one */
static int tso_head(const uint8_t *b, int n)
{
    const struct virtio_net_hdr *h = (const void *)b;
    int t = h->gso_type & ~VIRTIO_NET_HDR_GSO_ECN;
    if ((t != VIRTIO_NET_HDR_GSO_TCPV4 && t != VIRTIO_NET_HDR_GSO_TCPV6) || !h->gso_size) return 0;
    int tcp = h->csum_start;
    if (VH + tcp + 20 > n) return 0;
    int hl = tcp + (b[VH + tcp + 12] >> 4) * 4;
    return VH + hl < n ? hl : 0;
}

static void queue_pkt(struct dir *d, const uint8_t *b, int n, uint64_t due)
{
    struct pkt *p = malloc(sizeof *p + n);
    if (!p) { d->overflow++; return; }
    memcpy(p->d, b, n);
    p->len = n; p->due = due; p->next = NULL;
    *d->tail = p; d->tail = &p->next;
    d->held += n;
}

/* queue segments [from,to) of a TSO packet as a packet of their own */
static void queue_part(struct dir *d, const uint8_t *b, int n, int hl, int from, int to, uint64_t due)
{
    static uint8_t o[MAXPKT];
    struct virtio_net_hdr *h = (void *)o;
    memcpy(o, b, VH + hl);
    int mss = h->gso_size, all = n - VH - hl, a = from * mss, z = to * mss < all ? to * mss : all;
    memcpy(o + VH + hl, b + VH + hl + a, z - a);
    uint8_t *ip = o + VH, *tcp = ip + h->csum_start;
    int tlen = hl - h->csum_start + z - a;
    uint32_t seq = (tcp[4] << 24 | tcp[5] << 16 | tcp[6] << 8 | tcp[7]) + a, ps = 6 + tlen;
    put16(tcp + 4, seq >> 16); put16(tcp + 6, seq);
    if (z < all) tcp[13] &= ~0x09;                    /* FIN, PSH: last only */
    if (from) tcp[13] &= ~0x80;                       /* CWR: first only */
    if (ip[0] >> 4 == 4) {
        put16(ip + 2, hl + z - a);
        put16(ip + 4, (ip[4] << 8 | ip[5]) + from);
        put16(ip + 10, 0);
        put16(ip + 10, ~fold(sum16(ip, h->csum_start, 0)));
        ps = sum16(ip + 12, 8, ps);
    } else {
        put16(ip + 4, hl - 40 + z - a);
        ps = sum16(ip + 8, 32, ps);
    }
    put16(tcp + h->csum_offset, fold(ps));
    if (to - from == 1) h->gso_type = h->gso_size = 0;
    h->hdr_len = hl;
    queue_pkt(d, o, VH + hl + z - a, due);
}

static bool lose(struct dir *d)
{
    if (d->burst <= 1 || d->loss >= 1) return rnd() < d->loss;
    /* two states, mean burst length d->burst, long-run loss d->loss */
    d->bad = rnd() < (d->bad ? 1 - 1 / d->burst : d->loss / (d->burst * (1 - d->loss)));
    return d->bad;
}

static void take(struct dir *d, uint8_t *b, int n, uint64_t now)
{
    const struct virtio_net_hdr *h = (const void *)b;
    int hl = tso_head(b, n), pay = hl ? n - VH - hl : 0;
    int segs = hl ? (pay + h->gso_size - 1) / h->gso_size : 1;
    double wire = (hl ? pay + (double)segs * hl : n - VH) + segs * FRAMING;
    uint64_t cap = d->queue ? d->queue : fmax(262144, d->rate / 8 * 2e-9 * d->delay);

    d->pkts += segs;
    d->bytes += n - VH;
    if (d->free_at < now) d->free_at = now;
    if (d->rate) {
        if ((d->free_at - now) * 1e-9 * d->rate / 8 > cap) { d->overflow += segs; return; }
        d->free_at += wire * 8e9 / d->rate;
    }
    uint64_t due = d->free_at + d->delay + (d->jitter ? rnd() * d->jitter : 0);
    if (due < d->last_due) due = d->last_due;         /* jitter never reorders */
    d->last_due = due;

    if (d->corrupt) {                                 /* past any checksum the kernel looks at */
        int at = hl ? hl : h->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM ?
            h->csum_start + (b[VH + h->csum_start + 12] >> 4) * 4 : n;
        if (VH + at < n && rnd() < 1 - pow(1 - d->corrupt, segs)) {
            b[VH + at + (int)(rnd() * (n - VH - at))] ^= 1 << (int)(rnd() * 8);
            d->corrupted++;
        }
    }
    if (!d->loss) { queue_pkt(d, b, n, due); return; }
    if (!hl) { if (lose(d)) d->lost++; else queue_pkt(d, b, n, due); return; }
    int from = 0;
    for (int i = 0; i < segs; i++)
        if (lose(d)) {
            d->lost++;
            if (i > from) queue_part(d, b, n, hl, from, i, due);
            from = i + 1;
        }
    if (!from) queue_pkt(d, b, n, due);
    else if (from < segs) queue_part(d, b, n, hl, from, segs, due);
}

static void release(struct dir *d, uint64_t now)
{
    struct pkt *p;
    while ((p = d->head) && p->due <= now) {
        if (write(d->out, p->d, p->len) < 0) {
            if (errno == EAGAIN || errno == EINTR) return;
            d->errors++;
        }
        if (!(d->head = p->next)) d->tail = &d->head;
        d->held -= p->len;
        free(p);
    }
}

/* ---- control socket: "set k=v k=v", "stat", "down"; answers one line a direction ---- */

static bool valid_set(char *words)
{
    for (char *s, *w = strtok_r(words, " ", &s); w; w = strtok_r(NULL, " ", &s)) {
        char *eq = strchr(w, '=');
        if (!eq) return false;
        *eq = 0;
        if (!set_option(w, eq + 1)) return false;     /* the client checked values */
    }
    return true;
}

static bool control(void)                             /* true: asked to stop */
{
    char m[1000], r[2000];
    struct sockaddr_un from;
    socklen_t fl = sizeof from;
    ssize_t n = recvfrom(ctl_fd, m, sizeof m - 1, MSG_DONTWAIT, (void *)&from, &fl);
    if (n < 0) return false;
    m[n] = 0;
    bool stop = !strcmp(m, "down");
    int k = 0;
    if (!strncmp(m, "set ", 4) && !valid_set(m + 4)) k = snprintf(r, sizeof r, "error: bad option\n");
    for (int i = 0; i < 2; i++) {
        struct dir *d = &D[i];
        k += snprintf(r + k, sizeof r - k, "%s>%s rate_mbit=%g delay_ms=%g jitter_ms=%g loss=%g burst=%g corrupt=%g "
            "packets=%lu bytes=%lu lost=%lu overflow=%lu corrupted=%lu errors=%lu held_bytes=%lu\n",
            ns_name[i], ns_name[!i], d->rate / 1e6, d->delay / 1e6, d->jitter / 1e6, d->loss, d->burst, d->corrupt,
            d->pkts, d->bytes, d->lost, d->overflow, d->corrupted, d->errors, d->held);
    }
    sendto(ctl_fd, r, k, MSG_DONTWAIT, (void *)&from, fl);
    return stop;
}

static int ask(const char *msg)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX}, me = {.sun_family = AF_UNIX};
    char r[2000];
    snprintf(a.sun_path, sizeof a.sun_path, "%s", sock_path);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (void *)&me, sizeof(sa_family_t))) die("control socket");
    if (connect(fd, (void *)&a, sizeof a)) die("no link %s-%s (%s)", ns_name[0], ns_name[1], sock_path);
    struct timeval tv = {.tv_sec = 3};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
    if (send(fd, msg, strlen(msg), 0) < 0) die("send");
    ssize_t n = recv(fd, r, sizeof r - 1, 0);
    if (n < 0) die("no answer from the link");
    r[n] = 0;
    if (!quiet || !strncmp(r, "error", 5)) fputs(r, stdout);
    return !strncmp(r, "error", 5);
}

static void open_control(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    mkdir(RUNDIR, 0755);
    snprintf(a.sun_path, sizeof a.sun_path, "%s", sock_path);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) die("control socket");
    if (!connect(fd, (void *)&a, sizeof a)) { errno = 0; die("link %s-%s is up already", ns_name[0], ns_name[1]); }
    unlink(sock_path);                                /* left by a killed wanem */
    if (bind(fd, (void *)&a, sizeof a)) die("%s", sock_path);
    ctl_fd = fd;
}

static const char HELP[] =
"usage: wanem up   [options] [-d] NSA NSB          make the link, stay until ^C (-d: in the background)\n"
"       wanem run  [options] NSA NSB -- CMD [ARG]  make it, run CMD inside NSA, take it down; CMD's status\n"
"       wanem set  [options] NSA NSB               change a link that is up\n"
"       wanem stat NSA NSB                         settings and counters\n"
"       wanem down NSA NSB                         take it down\n"
"Namespaces that do not exist are made, and removed at the end. Inside: device wan0,\n"
"NSA has 10.77.0.1 and fd77::1, NSB has 10.77.0.2 and fd77::2.\n"
"Options (VALUE for both directions, or A-to-B/B-to-A as in 1gbit/100mbit):\n"
"  --rtt 80ms       half of it each way        --delay 40ms    one-way delay\n"
"  --jitter 2ms     added uniformly, in order  --rate 1gbit    Ethernet wire rate; 0: none\n"
"  --loss 0.1%      per wire segment           --burst 4       mean loss-burst length, in segments\n"
"  --queue 4m       bytes that may wait for the rate (default: one BDP, at least 256k)\n"
"  --corrupt 1e-6   chance a segment's payload gets one flipped bit that no kernel checksum sees\n"
"  --mtu 1500       --net 10.77.0   first three octets   --seed N   -q   quiet\n";

int main(int argc, char **argv)
{
    enum { MTU = 1, NET, SEED, VALUE };
    static const struct option L[] = {
        {"rtt",1,0,VALUE},{"delay",1,0,VALUE},{"jitter",1,0,VALUE},{"rate",1,0,VALUE},{"loss",1,0,VALUE},
        {"burst",1,0,VALUE},{"queue",1,0,VALUE},{"corrupt",1,0,VALUE},
        {"mtu",1,0,MTU},{"net",1,0,NET},{"seed",1,0,SEED},{"help",0,0,'h'},{0} };
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) { fputs(HELP, stdout); return argc < 2; }
    const char *verb = argv[1];
    char msg[900] = "set";
    bool background = false;
    int c, ix, ml = 3;
    argv++; argc--;
    while ((c = getopt_long(argc, argv, "+dqh", L, &ix)) != -1) switch (c) {
        case VALUE:
            set_option(L[ix].name, optarg);
            ml += snprintf(msg + ml, sizeof msg - ml, " %s=%s", L[ix].name, optarg);
            if (ml >= (int)sizeof msg) bad_use("options", "too long");
            break;
        case MTU: mtu = atoi(optarg); if (mtu < 576 || mtu > 65000) bad_use("mtu", optarg); break;
        case NET: net = optarg; break;
        case SEED: rng ^= strtoull(optarg, NULL, 0) * 0xbf58476d1ce4e5b9u; if (!rng) rng = 1; break;
        case 'd': background = true; break;
        case 'q': quiet = true; break;
        case 'h': fputs(HELP, stdout); return 0;
        default: return 2;
    }
    if (argc - optind < 2) bad_use("namespaces", "two names are needed");
    for (int i = 0; i < 2; i++) {
        const char *s = argv[optind + i];
        if (strlen(s) > 60 || !*s) bad_use("namespace", s);
        for (const char *p = s; *p; p++) if (!isalnum(*p) && !strchr("-_.", *p)) bad_use("namespace", s);
        strcpy(ns_name[i], s);
    }
    if (!strcmp(ns_name[0], ns_name[1])) bad_use("namespaces", "the names must differ");
    snprintf(sock_path, sizeof sock_path, RUNDIR "/%.45s-%.45s", ns_name[0], ns_name[1]);
    char **cmd = argv + optind + 2;
    if (*cmd && !strcmp(*cmd, "--")) cmd++;

    if (!strcmp(verb, "set")) return ask(msg);
    if (!strcmp(verb, "stat")) return ask(verb);
    if (!strcmp(verb, "down")) {
        int rc = ask(verb);
        for (int i = 0; i < 1000 && !access(sock_path, F_OK); i++) usleep(10000);
        return rc;
    }
    bool run = !strcmp(verb, "run");
    if ((!run && strcmp(verb, "up")) || run != !!*cmd) bad_use("command", verb);

    if ((home_ns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)) < 0) die("own namespace");
    sigset_t sigs;
    sigemptyset(&sigs);
    sigaddset(&sigs, SIGINT); sigaddset(&sigs, SIGTERM); sigaddset(&sigs, SIGHUP); sigaddset(&sigs, SIGCHLD);
    signal(SIGPIPE, SIG_IGN);
    atexit(cleanup);
    open_control();
    int fd[2];
    for (int i = 0; i < 2; i++) { D[i].tail = &D[i].head; D[i].in = fd[i] = make_side(i); }
    D[0].out = fd[1]; D[1].out = fd[0];
    prctl(PR_SET_TIMERSLACK, 1000ul);

    if (background) {                                 /* the parent returns when all is up */
        fflush(NULL);
        pid_t p = fork();
        if (p < 0) die("fork");
        if (p) _exit(0);
        setsid();
        int nul = open("/dev/null", O_RDWR);
        if (nul >= 0) { dup2(nul, 0); dup2(nul, 1); dup2(nul, 2); if (nul > 2) close(nul); }
    }
    sigprocmask(SIG_BLOCK, &sigs, NULL);
    int sig = signalfd(-1, &sigs, SFD_CLOEXEC | SFD_NONBLOCK);
    if (sig < 0) die("signalfd");
    pid_t child = 0;
    if (run) {
        if ((child = fork()) < 0) die("fork");
        if (!child) {
            sigprocmask(SIG_UNBLOCK, &sigs, NULL);
            signal(SIGPIPE, SIG_DFL);
            enter_ns(ns_name[0]);
            execvp(cmd[0], cmd);
            fprintf(stderr, "wanem: %s: %s\n", cmd[0], strerror(errno));
            _exit(127);
        }
    } else if (!background && !quiet)
        fprintf(stderr, "wanem: %s %s.1 <-> %s.2 %s is up\n", ns_name[0], net, net, ns_name[1]);

    static uint8_t buf[MAXPKT];
    struct pollfd pf[4] = {{fd[0], POLLIN, 0}, {fd[1], POLLIN, 0}, {ctl_fd, POLLIN, 0}, {sig, POLLIN, 0}};
    for (;;) {
        uint64_t now = now_ns(), due = UINT64_MAX;
        for (int i = 0; i < 2; i++) {
            release(&D[i], now);
            if (D[i].head && D[i].head->due < due) due = D[i].head->due;
        }
        uint64_t w = due == UINT64_MAX ? 0 : due > now ? due - now : 50000;
        struct timespec ts = {w / 1000000000u, w % 1000000000u};
        if (ppoll(pf, 4, due == UINT64_MAX ? NULL : &ts, NULL) < 0 && errno != EINTR) die("poll");
        if (pf[3].revents) {
            struct signalfd_siginfo si;
            int st;
            while (read(sig, &si, sizeof si) == sizeof si)
                if (si.ssi_signo != SIGCHLD) {
                    if (child > 0) kill(child, si.ssi_signo); else return 0;
                }
            if (child > 0 && waitpid(child, &st, WNOHANG) == child)
                return WIFEXITED(st) ? WEXITSTATUS(st) : 128 + WTERMSIG(st);
        }
        if (pf[2].revents && control()) return 0;
        for (int i = 0; i < 2; i++)
            for (int k = 0; pf[i].revents && k < BATCH; k++) {
                ssize_t n = read(fd[i], buf, sizeof buf);
                if (n < 0 && errno != EAGAIN && errno != EINTR) die("read wan0 of %s", ns_name[i]);
                if (n <= VH) break;
                take(&D[i], buf, n, now_ns());
            }
    }
}
