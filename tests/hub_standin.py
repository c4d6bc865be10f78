"""A stand-in for the Hugging Face hub on localhost: as much of its HTTP interface as a push and a download need."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """repos: {repo id: {file name: bytes}}. Refuses every token but "good"."""

    repos: dict = {}
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status=200, body=b"", headers=None):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body, url = self.rfile.read(int(self.headers.get("Content-Length", 0))), f"http://{self.headers['Host']}"
        if self.headers.get("Authorization") != "Bearer good":
            return self.answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            known = self.repos.setdefault(repo, {})
            return self.answer(
                409 if known else 200, {"url": f"{url}/{repo}", "error": "exists"} if known else {"url": f"{url}/{repo}"}
            )
        if match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = json.loads(body)["files"]
            return self.answer(
                body={"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        if match := re.match(r"/api/models/(.+)/commit/main", self.path):
            for row in map(json.loads, body.decode().splitlines()):
                if row["key"] == "file":
                    self.repos[match[1]][row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            return self.answer(body={"commitUrl": f"{url}/{match[1]}/commit/{COMMIT}", "commitOid": COMMIT})
        return self.answer(body={})  # /api/validate-yaml and the like

    def do_GET(self):
        if self.path == "/":
            return self.answer()
        if match := re.match(r"/api/models/([^/]+/[^/]+)(/revision/|/tree/|$)", self.path):
            repo = self.repos.get(match[1])
            if repo is None:
                return self.answer(404, {"error": "no"}, {"X-Error-Code": "RepoNotFound"})
            if match[2] == "/tree/":
                return self.answer(body=[{"type": "file", "path": p, "size": len(d), "oid": "0" * 40} for p, d in repo.items()])
            return self.answer(body={"id": match[1], "sha": COMMIT, "siblings": [{"rfilename": name} for name in repo]})
        if match := re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path):
            data = self.repos.get(match[1], {}).get(match[2])
            if data is None:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self.answer(body=data, headers={"ETag": f'"{hashlib.sha1(data).hexdigest()}"'})
        return self.answer(404)

    do_HEAD = do_GET


@contextlib.contextmanager
def hub():
    """Runs the stand-in; gives (address, its repositories)."""
    handler = type("OneHub", (Hub,), {"repos": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.repos
    finally:
        server.shutdown()
        server.server_close()
