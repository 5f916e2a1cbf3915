"""A websocket client, as far as the tests need one."""

import base64
import hashlib
import os
import socket

MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class WebSocket:
    """A websocket client of short text frames."""

    def __init__(self, app, port=80, context=None):
        self.stream = socket.create_connection(("127.0.0.1", port), 60)
        if context:
            self.stream = context.wrap_socket(self.stream, server_hostname=app.host)
        key = base64.b64encode(os.urandom(16)).decode()
        self.stream.sendall(f"GET /socket HTTP/1.1\r\nHost: {app.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        self.file = self.stream.makefile("rb")
        assert self.file.readline().startswith(b"HTTP/1.1 101 ")
        headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(self.file.readline, b"\r\n"))
        assert headers["sec-websocket-accept"] == base64.b64encode(hashlib.sha1((key + MAGIC).encode()).digest()).decode().lower()

    def say(self, text):
        """Send a text; give what comes back, or nothing when the server has closed."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(text.encode()))
        try:
            self.stream.sendall(bytes([0x81, 0x80 | len(masked)]) + mask + masked)
            kind, length = self.file.read(2) or (0, 0)
        except OSError:
            return ""
        assert kind in (0, 0x81)
        return self.file.read(length).decode()

    def close(self):
        self.stream.shutdown(socket.SHUT_RDWR)
        self.stream.close()
