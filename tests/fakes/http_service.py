"""An HTTP service that behaves as it is told: `python http_service.py [SERVICE_MS [CERTIFICATE KEY]]`.

It prints its port. With a certificate it speaks TLS.

Each request is served for that many milliseconds, one after the other. The path says what comes then: `/ok`,
`/status/503`, `/refuse-every/10`, `/hang`, `/close`, `/half`, `/garbage`, `/chunked`, `/until-closed`,
`/once` (answers and closes), `/early` (103 before the answer), `/sleep/500` (milliseconds) and
`/echo`. Under `/then/100/…` the first hundred requests are answered well.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys

OK = b'{"ok": true}'


class Service:
    def __init__(self, service_s: float) -> None:
        self.service_s = service_s
        self.free_s = 0.0
        self.n_requests = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self.serve(reader, writer):
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # a client that left
        finally:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection stays."""
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        await self.take_time()
        _, path, _ = first.split(" ")
        what, _, number = path.partition("?")[0].strip("/").partition("/")
        self.n_requests += 1
        if what == "then":
            good, _, rest = number.partition("/")
            what, _, number = ("ok", "", "") if self.n_requests <= int(good) else rest.partition("/")
        if what == "hang":
            await asyncio.sleep(3600)
        if what == "sleep":
            await asyncio.sleep(float(number) / 1e3)
        if what == "close" or (what == "refuse-every" and self.n_requests % int(number) == 0):
            return False
        if what == "half":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it")
            return False
        if what == "garbage":
            writer.write(b"\x00\x01 this is not HTTP at all\r\n\r\n")
            return True
        if what == "chunked":
            chunks = b"5\r\n" + OK[:5] + b"\r\n" + f"{len(OK) - 5:x}\r\n".encode() + OK[5:] + b"\r\n0\r\n\r\n"
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
            return True
        if what == "until-closed":
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + OK)
            return False
        if what == "early":
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        status = int(number) if what == "status" else 200
        if what == "echo":
            body = json.dumps({"request": first, "headers": headers, "body": body.decode("latin-1")}).encode()
        else:
            body = OK
        close = "Connection: close\r\n" if what == "once" else ""
        writer.write(f"HTTP/1.1 {status} X\r\n{close}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return what != "once"

    async def take_time(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self.free_s = max(now_s, self.free_s) + self.service_s
        if self.free_s > now_s:
            await asyncio.sleep(self.free_s - now_s)


async def main(service_s: float, *certificate: str) -> None:
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
    server = await asyncio.start_server(Service(service_s).connected, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) / 1e3 if len(sys.argv) > 1 else 0.0, *sys.argv[2:]))
