"""A stand-in for the Hugging Face hub on localhost: as much of its HTTP interface as pushes and downloads of models and data
sets need, and ways in which a hub fails.
"""

import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """repos: {repo id, or datasets/ID: {file name: bytes}}. Refuses to write with any token but "good". mood: see `trouble`."""

    repos: dict = {}
    mood = ""
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
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/paths-info/[^/]+", urllib.parse.unquote(self.path)):
            return self.inform(match[1], match[2], body)
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

    def inform(self, kind, name, body):
        """What lies at some paths of a repository: a file, a folder, nothing."""
        repo = self.repos.get(name if kind == "models" else f"datasets/{name}", {})
        form = json.loads(body) if body.startswith(b"{") else urllib.parse.parse_qs(body.decode())
        return self.answer(body=entries(repo, form.get("paths", [])))

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        if self.trouble(path):
            return None
        if path == "/":
            return self.answer()
        if match := re.match(r"/api/(models|datasets)/([^/]+/[^/]+?)(/revision/[^/]+|/tree/[^/]+(?:/(.*))?)?$", path):
            return self.describe(match[1], match[2], match[3] or "", match[4] or "")
        if match := re.match(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            data = self.repos.get((match[1] or "") + match[2], {}).get(match[3])
            if data is None:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self.send_file(data)
        return self.answer(404)

    def trouble(self, path):
        """slow: nothing is answered for long; hanging files: no file is; broken: the server is at fault."""
        if self.mood == "slow" or (self.mood == "hanging files" and "/resolve/" in path):
            time.sleep(20)
        if self.mood == "broken":
            self.answer(503, {"error": "overloaded"})
        return self.mood == "broken"

    def describe(self, kind, name, what, folder):
        """A repository of the hub, or the files in it."""
        repo = self.repos.get(name if kind == "models" else f"datasets/{name}")
        if repo is None:
            return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if what.startswith("/tree/"):
            start = f"{folder}/" if folder else ""
            inside = [p for p in repo if p.startswith(start)]
            if "recursive=true" not in self.path.lower():
                inside = list(dict.fromkeys(start + p.removeprefix(start).partition("/")[0] for p in inside))
            return self.answer(body=entries(repo, inside))
        about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in repo], "private": False, "tags": []}
        return self.answer(
            body=about | {"lastModified": "2026-01-01T00:00:00.000Z", "downloads": 1, "likes": 0, "gated": False}
        )

    def send_file(self, data):
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self.answer(206, data[first : last + 1], headers)
        return self.answer(body=data, headers=headers)

    do_HEAD = do_GET


class Server(ThreadingHTTPServer):
    """Says nothing of a client that went away before it had its answer: what it prints would stand in another test's output."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def entries(repo, paths):
    """What the hub says of paths in a repository: files, folders, nothing of those that are not there."""
    files = [{"type": "file", "path": p, "size": len(repo[p]), "oid": "0" * 40} for p in paths if p in repo]
    folders = [p for p in paths if any(name.startswith(f"{p}/") for name in repo)]
    return files + [{"type": "directory", "path": p, "oid": "0" * 40} for p in folders]


@contextlib.contextmanager
def hub(mood=""):
    """Runs the stand-in; gives (address, its repositories)."""
    handler = type("OneHub", (Hub,), {"repos": {}, "mood": mood})
    server = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.repos
    finally:
        server.shutdown()
        server.server_close()
