"""A real server over real sockets."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from .conftest import TOKEN, Server, running


def talk(server: Server, data: bytes, wait: float = 10.0) -> bytes:
    """What the server says to raw bytes, until it closes or `wait` seconds of silence."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as connection:
        said = b""
        try:
            connection.sendall(data)
        except ConnectionError:  # closed before all was sent
            return said
        while True:
            try:
                piece = connection.recv(65536)
            except (TimeoutError, ConnectionError):
                return said
            if not piece:
                return said
            said += piece


def test_health_is_for_everybody_and_the_rest_is_not(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as nobody:
        assert nobody.get("/healthz").json() == {"status": "live"}
        assert nobody.get("/livez").status_code == 200
        assert nobody.get("/readyz").json() == {"status": "ready"}
        for path in ("/metrics", "/api/status", "/openapi.json", "/docs", "/", "/jobs", "/v2", "/v1/models"):
            answer = nobody.get(path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"


def test_metrics_name_routes_not_paths(server: Server) -> None:
    with server.client() as client:
        client.get("/v2/models/some-model-name/ready")
        client.get("/some-page-that-is-not-there")
        text = client.get("/metrics").text
    assert 'route="/v2/models/{' in text
    assert "some-" not in text
    assert "process_resident_memory_bytes" in text


def test_status(server: Server) -> None:
    with server.client() as client:
        status = client.get("/api/status").json()
    assert status["pid"] == server.pid
    assert status["memory"] > 2**20
    assert [wing["name"] for wing in status["wings"]] == ["serving"]


def test_errors_are_problems_with_a_request_id(server: Server) -> None:
    with server.client() as client:
        missing = client.get("/nothing")
        wrong_method = client.delete("/api/status")
    assert missing.headers["content-type"] == "application/problem+json"
    assert missing.json()["request_id"] == missing.headers["x-request-id"]
    assert (missing.status_code, wrong_method.status_code) == (404, 405)
    assert wrong_method.json()["status"] == 405


def test_the_description_covers_the_wings_and_its_page_needs_no_internet(server: Server) -> None:
    with server.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
        page = client.get("/docs").text
        assert all(client.get(path).status_code == 200 for path in re.findall(r'(?:src|href)="(/[^"]+)"', page))
        assert client.get("/docs/assets/..%2f__init__.py").status_code == 404
    assert "/v2/models/{model}/infer" in paths or any(path.endswith("/infer") for path in paths)
    assert not re.findall(r'(?:src|href)="https?://', page)


def test_a_foreign_host_name_is_refused(server: Server) -> None:
    with server.client() as client:
        assert client.get("/api/status", headers={"host": "evil.example"}).status_code == 421


def test_a_body_over_the_limit_is_refused(server: Server) -> None:
    with server.client() as client:
        announced = client.post("/v2/models/m/infer", content=b"x" * 300_000)
        chunked = client.post("/v2/models/m/infer", content=(b"x" * 10_000 for _ in range(30)))
    assert (announced.status_code, chunked.status_code) == (413, 413)
    assert "error" in announced.json()


def test_a_client_that_sends_on_reads_the_refusal(server: Server) -> None:
    """Closing with bytes unread would reset the connection, and the client's system would drop the answer."""
    request = f"POST /v2/models/m/infer HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\n"
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(f"{request}content-length: 3000000\r\n\r\n".encode())
            for _ in range(30):
                connection.sendall(bytes(100_000))
            said = b"".join(iter(lambda: connection.recv(65536), b""))
        assert said.startswith(b"HTTP/1.1 413 "), said


def test_a_huge_body_is_not_kept_in_memory(server: Server) -> None:
    with server.client() as client:
        before = client.get("/api/status").json()["memory"]
        answer = client.post("/v2/models/m/infer", content=(b"x" * 2**20 for _ in range(100)))
        assert answer.status_code == 413
        assert client.get("/api/status").json()["memory"] < before + 30 * 2**20


def test_a_body_that_comes_too_slowly_gets_408(server: Server) -> None:
    request = (
        f"POST /v2/models/m/infer HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\n"
        "content-length: 100\r\n\r\n{"
    )
    assert talk(server, request.encode()).startswith(b"HTTP/1.1 408 ")


def test_endless_headers_are_refused(server: Server) -> None:
    said = talk(server, b"GET / HTTP/1.1\r\n" + b"x-filler: " + b"y" * 400_000)
    assert said == b"" or said.startswith(b"HTTP/1.1 431 ")
    with server.client() as client:
        assert client.get("/livez").status_code == 200


def test_nonsense_on_the_socket_does_no_harm(server: Server) -> None:
    assert talk(server, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").startswith(b"HTTP/1.1 400 ")


def test_a_connection_too_many_gets_503_and_others_go_on(server: Server) -> None:
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    try:
        with server.client() as client:
            answer = client.get("/livez")
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
        held[0].sendall(b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert held[0].recv(100).startswith(b"HTTP/1.1 200 ")
    finally:
        for connection in held:
            connection.close()
    for _ in range(100):
        with server.client() as client:
            if client.get("/livez").status_code == 200:
                return
        time.sleep(0.05)
    pytest.fail("the server did not recover")


def test_signing_in_and_out(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, headers={"sec-fetch-site": "same-origin"}) as browser:
        page = browser.get("/api/status")
        assert page.status_code == 401
        answer = browser.post("/login", data={"token": TOKEN, "next": "/docs"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/docs")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert browser.get("/api/status").status_code == 200
        assert browser.post("/logout").status_code == 303
        assert browser.get("/api/status").status_code == 401


@pytest.mark.parametrize(
    "onward", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:x", "/a\r\nb"]
)
def test_the_login_page_leads_nowhere_else(server: Server, onward: str) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as browser:
        assert browser.post("/login", data={"token": TOKEN, "next": onward}).headers["location"] == "/"


def test_wrong_logins_are_refused_and_then_slowed(tmp_path: Path) -> None:
    with running(tmp_path, "--token", TOKEN) as server, httpx.Client(base_url=server.url, trust_env=False) as browser:
        assert browser.post("/login", data={}).status_code == 401
        answer = browser.post("/login", data={"token": "<wrong>"})
        assert answer.status_code == 401
        assert "<wrong>" not in answer.text
        codes = [browser.post("/login", data={"token": str(number)}).status_code for number in range(30)]
        assert codes[-1] == 429
        log = (server.workspace / "stderr").read_text()
    assert TOKEN not in log


def test_first_start_prints_a_token_that_works_and_the_second_does_not(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert server.first_token
        with server.client(server.first_token) as client:
            assert client.get("/api/status").status_code == 200
        told = json.loads((tmp_path / "run" / "server.json").read_text())
        assert (told["url"], told["pid"]) == (server.url, server.pid)
        assert stat.S_IMODE((tmp_path / "run" / "server.json").stat().st_mode) == 0o600
        with server.client(told["token"]) as client:
            assert client.get("/api/status").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert not (tmp_path / "run" / "server.json").exists()
    with running(tmp_path) as again:
        assert again.first_token is None


def test_a_second_server_on_the_workspace_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "octavo.cli", "up", "--port", "0", "--workspace", str(tmp_path)]
    with running(tmp_path) as server:
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2
        assert str(server.pid) in second.stderr
        assert second.stderr.count("\n") == 1
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait(20)
    with running(tmp_path) as after:
        assert after.pid != server.pid


def test_stopping_finishes_what_is_in_flight(tmp_path: Path) -> None:
    with running(tmp_path, "--token", TOKEN) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            head = f"POST /login HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\n"
            body = b"token=wrong"
            form = "content-type: application/x-www-form-urlencoded\r\n"
            connection.sendall((head + form + f"content-length: {len(body)}\r\n\r\n").encode() + body[:3])
            with server.client() as client:  # answered after the above was read
                assert client.get("/livez").status_code == 200
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            connection.sendall(body[3:])
            assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")
        assert server.process.wait(20) == 0
