"""A hub: a real HTTP server on loopback that fails as it is told to."""

import hashlib
import http.server
import json
import threading
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class Hub:
    """Serves what the hub serves of one data set. `faults` maps a file to faults, one a request."""

    def __init__(self, repo, files):
        self.repo, self.files = repo, files
        self.faults = {}
        self.requests = []
        self.page = 2
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub._get(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def bytes_sent(self, name):
        return [size for asked, size in self.requests if asked == name]

    def _get(self, request):
        url = urlsplit(request.path)
        path, api = unquote(url.path), f"/api/datasets/{self.repo}"
        self.authorization = request.headers.get("Authorization")
        resolve = f"/datasets/{self.repo}/resolve/{COMMIT}/"
        name = path.removeprefix(resolve) if path.startswith(resolve) else path
        fault = self.faults.get(name, [])
        fault = fault.pop(0) if fault else None
        if fault == "503":
            return self._answer(request, 503, b"busy", {"Retry-After": "0"})
        if fault == "reset":
            request.close_connection = True
            return request.connection.shutdown(2)
        if path == f"{api}/revision/main":
            return self._answer(request, 200, json.dumps({"id": self.repo, "sha": COMMIT}).encode())
        if path == f"{api}/tree/{COMMIT}":
            return self._tree(request, url)
        if path.startswith(resolve) and name in self.files:
            return self._file(request, name, fault)
        return self._answer(request, 404, b'{"error":"Repository not found"}')

    def _tree(self, request, url):
        start = int(dict(p.split("=") for p in url.query.split("&")).get("cursor", 0))
        entries = [{"type": "directory", "path": "data", "oid": "0", "size": 0}]
        for name, data in sorted(self.files.items(), reverse=True):
            entry = {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
            if name.endswith(".parquet"):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        headers = {}
        if start + self.page < len(entries):
            # as a mirror does that passes on what it got: the address of the original hub
            link = f"https://huggingface.co{url.path}?recursive=true&cursor={start + self.page}"
            headers["Link"] = f'<{link}>; rel="next"'
        return self._answer(request, 200, json.dumps(entries[start : start + self.page]).encode(), headers)

    def _file(self, request, name, fault):
        data = self.files[name]
        if fault == "wrong":
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, status, headers = 0, 200, {"ETag": hashlib.sha256(data).hexdigest(), "X-Repo-Commit": COMMIT}
        if request.headers.get("Range"):
            start, status = int(request.headers["Range"].removeprefix("bytes=").partition("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        if fault == "truncated":
            self.requests.append((name, len(body) // 2))
            request.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                request.send_header(key, value)
            request.end_headers()
            request.wfile.write(body[: len(body) // 2])
            request.wfile.flush()
            request.close_connection = True
            return request.connection.shutdown(1)
        self.requests.append((name, len(body)))
        return self._answer(request, status, body, headers)

    def _answer(self, request, status, body, headers=()):
        request.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(body)
