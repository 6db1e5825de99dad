/* An HTTP/1.1 server that answers every request at once with a short JSON text: one thread, epoll, keep-alive.
 *
 * It is there to be faster than any generator that is measured against it. It understands what such generators
 * send: requests with or without a Content-Length, several in one read, one in several reads.
 *
 *     cc -O2 -o server server.c && ./server        prints the port it listens on, serves until it is killed
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FD 4096
#define ROOM 65536
#define ANSWER "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{\"ok\":true}"

struct connection {
    size_t filled;
    char data[ROOM];
};

static struct connection *connections[MAX_FD];

static void drop(int fd) {
    free(connections[fd]);
    connections[fd] = NULL;
    close(fd);
}

/* Length of the first whole request in the buffer; 0 while there is none; -1 where there never will be. */
static long request_length(const char *data, size_t filled) {
    const char *end = memmem(data, filled, "\r\n\r\n", 4);
    if (end == NULL) return filled < ROOM ? 0 : -1;
    size_t head = (size_t)(end - data) + 4;
    size_t body = 0;
    for (const char *line = data; line < end;) {
        const char *next = memmem(line, head - (size_t)(line - data), "\r\n", 2);
        if (strncasecmp(line, "content-length:", 15) == 0) body = strtoul(line + 15, NULL, 10);
        line = next + 2;
    }
    if (head + body > ROOM) return -1;
    return head + body <= filled ? (long)(head + body) : 0;
}

static int answer(int fd, int count) {
    static char answers[64 * sizeof(ANSWER)];
    size_t length = 0;
    for (int i = 0; i < count && i < 64; i++) {
        memcpy(answers + length, ANSWER, sizeof(ANSWER) - 1);
        length += sizeof(ANSWER) - 1;
    }
    /* A client that does not read its answers has no place here. */
    return send(fd, answers, length, MSG_NOSIGNAL) == (ssize_t)length;
}

static int serve(int fd) {
    struct connection *c = connections[fd];
    ssize_t got = recv(fd, c->data + c->filled, ROOM - c->filled, 0);
    if (got < 0) return errno == EAGAIN || errno == EINTR;
    if (got == 0) return 0;
    c->filled += (size_t)got;
    size_t used = 0;
    int count = 0;
    for (;;) {
        long length = request_length(c->data + used, c->filled - used);
        if (length < 0) return 0;
        if (length == 0) break;
        used += (size_t)length;
        if (++count == 64) {
            if (!answer(fd, count)) return 0;
            count = 0;
        }
    }
    memmove(c->data, c->data + used, c->filled - used);
    c->filled -= used;
    return count == 0 || answer(fd, count);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 1024) != 0) {
        perror("server");
        return 1;
    }
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[256];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                if (!serve(fd)) drop(fd);
                continue;
            }
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                if (fd >= MAX_FD || (connections[fd] = calloc(1, sizeof(struct connection))) == NULL) {
                    close(fd);
                    continue;
                }
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
                event.events = EPOLLIN;
                event.data.fd = fd;
                epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
            }
        }
    }
}
