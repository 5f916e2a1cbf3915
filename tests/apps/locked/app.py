"""Signs a word with a library that a lock file names."""

import http.server
import os

import itsdangerous

GREETING = "Hello"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        signer = itsdangerous.Signer("key")
        text = f"{GREETING} {signer.unsign(signer.sign('python')).decode()}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
