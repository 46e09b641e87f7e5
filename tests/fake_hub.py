"""A model hub without a network, in this process: repositories are dictionaries, and everything asked is remembered.

It plays the part of the hub's API that pushing needs: making a repository, looking at it, asking how files are to be
sent, and committing them, small ones within the commit and large ones (`large`) through an address of their own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)


class FakeHub:
    """A hub on loopback; `repos` by "models/owner/name" and "datasets/owner/name"."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str, Mapping[str, str]]] = []
        self.refuse: tuple[int, str] | None = None
        """answer everything so"""
        self.large = (".safetensors",)
        self.blobs: dict[str, bytes] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else self._chunks()
                path = urlsplit(self.path).path
                hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
                status, reply = hub.refuse or hub.answer(self.command, path, body)
                raw = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(raw)

            do_GET = do_POST = do_PUT = do_HEAD = handle_any

            def _chunks(self) -> bytes:
                """A body that comes in pieces."""
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return b""
                found = b""
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return found

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if parts[0] == "blob":
            self.blobs[parts[1]] = body
            return 200, {}
        if path.endswith(".git/info/lfs/objects/batch"):
            found = json.loads(body)["objects"]
            actions = [{**o, "actions": {"upload": {"href": f"{self.url}/blob/{o['oid']}"}}} for o in found]
            return 200, {"transfer": "basic", "objects": actions}
        if parts[0] != "api" or len(parts) < 4:
            return 200, {}
        name = "/".join(parts[1:4])
        repo = self.repos.get(name)
        if repo is None:
            return 404, {"error": "Repository not found"}
        if parts[4:5] == ["preupload"]:
            files = [{"path": f["path"], "uploadMode": self._mode(f["path"])} for f in json.loads(body)["files"]]
            return 200, {"files": [{**f, "shouldIgnore": False} for f in files]}
        if parts[4:5] == ["commit"]:
            return self._commit(name, repo, body)
        about = {"id": "/".join(parts[2:4]), "private": repo.private, "sha": "0" * 40, "tags": [], "siblings": []}
        return 200, {**about, "cardData": repo.card, "downloads": 0, "likes": 0}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
        if name in self.repos:
            return 409, {"error": "You already created this repo", "url": f"{self.url}/{name}"}
        private = asked.get("private", asked.get("visibility") == "private")
        self.repos[name] = Repo(bool(private))
        return 200, {"url": f"{self.url}/{name.removeprefix('models/')}", "name": name.partition("/")[2]}

    def _mode(self, path: str) -> str:
        return "lfs" if path.endswith(self.large) else "regular"

    def _commit(self, name: str, repo: Repo, body: bytes) -> tuple[int, Any]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repo.commits.append(value["summary"])
            elif line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                blob = self.blobs[value["oid"]]
                assert hashlib.sha256(blob).hexdigest() == value["oid"]
                repo.files[value["path"]] = blob
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}
