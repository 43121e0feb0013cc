"""The HTML report in a real browser: it draws, asks for nothing, and says what the JSON says."""

import gzip
import json
import re
import sys
from pathlib import Path

import pytest

import tracetool
from tracetool import by_name, unprofiled
from tracetool.differ import lay_out
from tracetool.metrics import METRICS, Unit
from tracetool.render import words
from tracetool.render.speed import speed_words
from tracetool.stats import Ratio
from tracetool.timeline import Kind, step_timeline

from . import browser
from .traces import GRAPH, PAGEABLE, PINNED, invoke
from .traces_by_hand import op, rng

EVIL = "</script><script>window.evil = 1</script><!--<img src=x onerror='window.evil = 2'>\u2028"


@pytest.fixture(scope="module")
def chromium():
    browser.needed()
    one = browser.Browser()
    yield one
    one.close()


@pytest.fixture(scope="module")
def page_of_two(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "two.html"
    assert invoke("report", PAGEABLE, PINNED, "-o", path).exit_code == 0
    return path


def opened(chromium, path, **settings):
    page = chromium.open(Path(path).as_uri(), **settings)
    page.until("document.documentElement.dataset.ready")
    return page


def events_of(name, *, kernels=1, steps=3, range_name="work"):
    """A hand-written trace: one range a step, which launches some kernels."""
    events, time, ids = [], 10.0, 0
    for step in range(steps):
        start = time
        for _ in range(kernels):
            ids += 1
            common = {"pid": 1, "tid": 1, "args": {"correlation": ids}}
            events.append(
                {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": time + 2, "dur": 1, **common}
            )
            events.append(
                {"ph": "X", "cat": "kernel", "name": name, "ts": time + 4.001, "dur": 2, **common, "pid": 0, "tid": 7}
            )
            time += 5
        one = {"ph": "X", "cat": "user_annotation", "pid": 1, "tid": 1}
        events.append({**one, "name": range_name, "ts": start + 1, "dur": time - start})
        time += 5
        events.append({**one, "name": f"ProfilerStep#{step}", "ts": start, "dur": time - start - 1})
    return events


def saved(path, events, **more):
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events, **more}).encode()))
    return path


# In the browser ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (1400, True), (390, False), (390, True)])
def test_it_draws_without_a_word_on_the_console_and_without_a_request(chromium, page_of_two, width, dark):
    with opened(chromium, page_of_two, width=width, dark=dark) as page:
        places = page.run("document.querySelectorAll('[data-figure]').length")
        assert page.run("document.querySelectorAll('[data-figure] .main-svg').length") >= places > 5
        assert page.complaints == []
        assert [one for one in page.requests if not one.startswith(("file:", "data:", "blob:"))] == []
        assert page.run("document.documentElement.scrollWidth") == width


def test_the_verdict_is_at_the_top(chromium, page_of_two):
    with opened(chromium, page_of_two) as page:
        said = page.run("document.querySelector('.verdict').innerText")
    assert "train_step/h2d_batch" in said
    assert "17 pageable HtoD copies a call became 2 pinned, 17 syncs a call gone" in said
    assert "no unprofiled times are stored" in said


def test_the_table_has_the_numbers_of_the_json(chromium, page_of_two):
    found = json.loads(invoke("diff", PAGEABLE, PINNED, "--format", "json").stdout)
    ranges = {tuple(one["path"]): one["metrics"] for one in found["ranges"]}
    with opened(chromium, page_of_two) as page:
        page.run("document.getElementById('every').click()")
        columns = page.run(
            "[...document.querySelectorAll('#tree thead th')].slice(1).map(one => one.title.split(':')[0])"
        )
        rows = page.run(
            "[...document.querySelectorAll('#tree tbody tr')].map(row => [...row.cells].map(one => one.title))"
        )
    assert "h2d_copies" in columns
    compared = 0
    for title, *cells in rows:
        metrics = ranges[tuple(title.split("\n")[0].split("/"))]
        for metric, said in zip(columns, cells, strict=True):
            if metric not in metrics:
                assert said.endswith("Nothing here.")
                continue
            one, unit = metrics[metric], METRICS[metric].unit
            for label, side in (("train_pageable", one["baseline"]), ("train_pinned", one["variants"][0])):
                constant = not METRICS[metric].exact or (side and side["min"] == side["max"])
                if side and side["calls"] and constant:
                    assert f"{label}: {words.number(side['median'], unit)}" in said
                    compared += 1
    assert compared > 100


def test_figures_have_the_numbers_of_the_json(chromium, page_of_two):
    with opened(chromium, page_of_two) as page:
        drawn = page.run(
            "Object.fromEntries([...document.querySelectorAll('[data-metric]')]"
            ".map(one => [one.dataset.metric, one.data[0].x]))"
        )
        timeline = page.run(
            "document.querySelector('[data-figure=timeline]').data.map(one => [one.name, one.x.length])"
        )
        page.run(
            "const of = document.getElementById('bars-of'); of.value = [...of.options]"
            ".find(one => one.text === 'train_step/h2d_batch').value;"
            "of.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        of_range = page.run("document.querySelector('[data-metric=h2d_copies]').data[0].x")
    assert drawn["h2d_copies"] == [17, 2]
    assert drawn["syncs"] == [19, 2]
    assert drawn["kernel_launches"] == [38, 37]
    assert of_range == [17, 2]
    assert dict(timeline)[Kind.H2D_PAGEABLE] == 17
    assert dict(timeline)[Kind.H2D_PINNED] == 2


def test_findings_are_there_once_with_what_each_side_has_of_them(chromium, page_of_two):
    found = json.loads(invoke("lint", PAGEABLE, PINNED, "--format", "json").stdout)["traces"]
    wanted = {}
    for number, trace in enumerate(found):
        for one in trace["findings"]:
            card = wanted.setdefault((one["rule"], "/".join(one["range"][1:])), {"costs": ["not found"] * 2, **one})
            card["costs"][number] = amounts_of(one, trace)
    with opened(chromium, page_of_two) as page:
        shown = page.run(
            "[...document.querySelectorAll('.fault')].map(one => ({rule: one.querySelector('.rule b').textContent,"
            "where: one.querySelector('summary code').textContent,"
            "costs: [...one.querySelectorAll('.cost')].map(cost => cost.textContent),"
            "text: one.textContent, code: one.querySelector('pre').textContent, open: one.open}))"
        )
        lead = page.run("document.querySelector('#findings .lead').textContent")
    assert {(one["rule"], one["where"]): one["costs"] for one in shown} == {
        key: card["costs"] for key, card in wanted.items()
    }
    for one in shown:
        card = wanted[one["rule"], one["where"]]
        assert card["mend"]["text"] in one["text"]
        assert one["code"] == card["mend"]["code"]
        assert card["what"] in one["text"]
    assert [one["open"] for one in shown] == [True, False, False, False]
    assert lead.startswith("5 findings in 2 traces; costs of several do not add up. Costs are estimated")


def amounts_of(finding, trace):
    share = finding["cost"]["ns"] / trace["step_ns"]
    return f"{words.number(finding['cost']['ns'], Unit.NS)} a step, {share:.0%} of it"


def test_what_the_project_suppresses_is_on_the_page_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(
        "[tool.tracetool.lint]\nsuppress = [{ rule = 'TT05', reason = 'graphs <later>' }]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert invoke("report", PAGEABLE, "-o", tmp_path / "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert "Suppressed: TT05 launch-bound in train_step, 1.56 ms a step, 71% of it: graphs &lt;later&gt;" in page
    assert "TT04 cannot judge" in page


def test_sorting_filtering_and_switches(chromium, page_of_two):
    names = "[...document.querySelectorAll('#tree tbody th')].map(one => one.title.split('\\n')[0])"
    with opened(chromium, page_of_two) as page:
        tree = page.run(names)
        page.run("document.querySelector('#tree [data-sort=ops]').click()")
        assert page.run(names)[:3] == ["ProfilerStep", "train_step", "train_step/h2d_batch"]
        assert page.run("document.querySelector('#tree [data-sort=ops]').closest('th').ariaSort") == "descending"
        page.run("document.querySelector('#tree [data-sort=ops]').click()")
        assert page.run(names)[-1] in ("ProfilerStep", "train_step", "train_step/h2d_batch")
        page.run("document.querySelector('#tree [data-sort=ops]').click()")
        assert page.run(names) == tree
        page.run("document.getElementById('changed').click()")
        assert page.run(names) == ["ProfilerStep", "train_step", "train_step/h2d_batch"]
        page.run("document.getElementById('changed').click()")
        page.run("document.querySelector('[name=scope][value=self]').click()")
        of_step = "document.querySelector('#tree tbody tr').innerText"
        assert "38" not in page.run(of_step)
        page.run(
            "const filter = document.getElementById('filter'); filter.value = 'OPTIM';"
            "filter.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        assert all("ptim" in name for name in page.run(names))
        assert "3 of 10 ranges" in page.run("document.getElementById('tree-foot').innerText")


def test_other_tables_sort_by_size_and_not_by_letters(chromium, page_of_two):
    with opened(chromium, page_of_two) as page:
        page.run("[...document.querySelectorAll('.named thead button')].at(-1).click()")
        times = page.run("[...document.querySelectorAll('.named tbody tr')].map(one => one.cells[5].innerText)")
    sizes = {"ns": 1, "us": 10**3, "ms": 10**6}
    found = [float(digits) * sizes[unit] for digits, unit in (one.split() for one in times if one != "-")]
    assert found == sorted(found, reverse=True)
    assert len(found) > 5


def test_keys_zoom_and_the_button_changes_the_theme(chromium, page_of_two):
    axis = "document.querySelector('[data-figure=timeline]').layout.xaxis.range"
    with opened(chromium, page_of_two) as page:
        whole = page.run(axis)
        page.run("document.querySelector('.timeline').focus()")
        page.press("+", text="+")
        zoomed = page.run(axis)
        assert zoomed[1] - zoomed[0] == pytest.approx((whole[1] - whole[0]) / 2)
        page.press("Home")
        assert page.run(axis) == whole
        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.run(ground)
        page.run("document.getElementById('theme').click()")
        assert page.run(ground) != light
        page.run("document.getElementById('theme').click()")
        assert page.run(ground) == light


def test_what_is_printed_is_light_and_no_wider_than_paper(chromium, page_of_two):
    width = "document.querySelector('[data-figure=timeline] .main-svg').getBoundingClientRect().width"
    with opened(chromium, page_of_two, dark=True) as page:
        screen = page.run(width)
        page.run("dispatchEvent(new Event('beforeprint'))")
        assert page.run(width) == 680 < screen
        assert page.run("getComputedStyle(document.documentElement).colorScheme") == "light"
        page.run("dispatchEvent(new Event('afterprint'))")
        page.until(f"{width} === {screen}")
        assert page.run("getComputedStyle(document.documentElement).colorScheme") == "dark"


def test_names_from_traces_are_text(chromium, tmp_path):
    one = saved(tmp_path / "one.json.gz", events_of(EVIL, range_name=EVIL), deviceProperties=[{"name": EVIL}])
    two = saved(tmp_path / "two.json.gz", events_of(EVIL + "2", kernels=2, range_name=EVIL))
    path = tmp_path / "evil.html"
    assert invoke("report", one, two, "--name", EVIL, "--name", "{{ 7 * 7 }}", "-o", path).exit_code == 0
    with opened(chromium, path) as page:
        assert page.run("window.evil") is None
        assert page.run("document.querySelectorAll('img').length") == 0
        assert "<script>window.evil" in page.run("document.querySelector('.named tbody').innerText")
        assert "{{ 7 * 7 }}" in page.run("document.querySelector('h1').innerText")
        assert page.complaints == []


@pytest.mark.parametrize("trace", [GRAPH, PAGEABLE, "cpu"])
def test_a_single_trace(chromium, tmp_path, trace):
    if trace == "cpu":
        events = [one for one in events_of("none") if one["cat"] == "user_annotation"]
        trace = saved(tmp_path / "cpu.json.gz", events)
    path = tmp_path / "one.html"
    assert invoke("report", trace, "-o", path).exit_code == 0
    with opened(chromium, path) as page:
        assert page.complaints == []
        assert page.run("document.querySelectorAll('#tree tbody tr').length") > 1
        assert not page.run("document.getElementById('changed')")


def test_a_hundred_ranges_and_ten_variants(chromium, tmp_path):
    traces = []
    for variant in range(11):
        events = []
        for at in range(100):
            for event in events_of("kernel", kernels=1 + (at + variant) % 2, steps=1, range_name=f"layer_{at}"):
                moved = {**event, "ts": event["ts"] + 100 * at}
                if "args" in event:
                    moved["args"] = {"correlation": event["args"]["correlation"] + 10 * at}
                events.append(moved)
        traces.append(saved(tmp_path / f"variant_{variant}.json.gz", events))
    path = tmp_path / "many.html"
    assert invoke("report", *traces, "-o", path).exit_code == 0
    assert path.stat().st_size < 2_000_000
    with opened(chromium, path, width=390) as page:
        assert page.run("document.querySelectorAll('#tree tbody tr').length") > 100
        page.run("document.querySelector('[name=view][value=variants]').click()")
        assert page.run("document.querySelectorAll('#tree thead th').length") == 12
        assert page.run("document.documentElement.scrollWidth") == 390
        assert page.complaints == []


# Without one ------------------------------------------------------------------------------------------------------


def test_the_size_of_a_page(page_of_two):
    assert page_of_two.stat().st_size < 2_000_000
    assert "http-equiv" in page_of_two.read_text(encoding="utf-8")


def test_no_address_in_the_page_is_loaded(page_of_two):
    text = page_of_two.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["']?(?!#)[^"'>]+""", re.sub(r"<script.*?</script>", "", text, flags=re.S))


@pytest.mark.parametrize("command", ["diff", "report"])
def test_a_page_is_not_overwritten(tmp_path, command):
    path = tmp_path / "page.html"
    path.write_text("mine")
    option = "--html" if command == "diff" else "-o"
    with pytest.raises(tracetool.errors.OutputError, match="exists already"):
        invoke(command, PAGEABLE, PINNED, option, path)
    assert path.read_text() == "mine"
    assert invoke(command, PAGEABLE, PINNED, option, path, "--force").exit_code == 0
    assert path.read_text().startswith("<!doctype html>")


def test_diff_writes_its_page_beside_its_result(tmp_path):
    path = tmp_path / "page.html"
    done = invoke("diff", PAGEABLE, PINNED, "--html", path)
    assert done.stdout == invoke("diff", PAGEABLE, PINNED).stdout
    assert "train_step/h2d_batch" in path.read_text(encoding="utf-8")


def test_one_file_cannot_be_both(tmp_path):
    path = tmp_path / "page.html"
    with pytest.raises(tracetool.errors.SettingError, match="need a file each"):
        invoke("diff", PAGEABLE, PINNED, "--html", path, "-o", path)


def test_speed_is_told_from_the_stored_times_alone(tmp_path):
    def side(name, ns):
        times = [[ns + sample + 10 * process for sample in range(10)] for process in range(4)]
        return saved(tmp_path / name, events_of("k"), tracetool={"unprofiled_ns_per_step": times})

    slow, fast = side("slow.json.gz", 131_000), side("fast.json.gz", 100_000)
    path = tmp_path / "page.html"
    assert invoke("report", slow, fast, "-o", path).exit_code == 0
    text = path.read_text(encoding="utf-8")
    assert "1.31x faster" in text
    assert "95 % interval 1.31x to 1.31x" in text
    [baseline, variant] = unprofiled.times_of(
        lay_out([tracetool.summarize(tracetool.read(str(p))) for p in (slow, fast)]).sides
    )
    assert baseline.ratio is None
    assert variant.ratio.value == pytest.approx(100_000 / 131_000, rel=1e-3)


@pytest.mark.parametrize("stored", [None, 7, "x", [1, 2], [["a"], [-1]], {}])
def test_what_is_no_times_is_none(tmp_path, stored):
    path = saved(tmp_path / "odd.json.gz", events_of("k"), tracetool={"unprofiled_ns_per_step": stored})
    [times] = unprofiled.times_of(lay_out([tracetool.summarize(tracetool.read(str(path)))]).sides)
    assert times.samples == ()


def test_a_timeline_is_bounded_and_loses_nothing(tmp_path):
    path = saved(tmp_path / "long.json.gz", events_of("k", kernels=5000, steps=1))
    found = tracetool.summarize(tracetool.read(str(path)))
    step = step_timeline(found, 500)
    pieces = [piece for lane in step.lanes for piece in lane.pieces]
    assert len(pieces) <= 500
    assert sum(piece.count for piece in pieces) + step.left_out == 10_000 + 2
    assert step.merged > 9_000


def test_a_timeline_is_the_step_of_median_time():
    found = tracetool.summarize(tracetool.read(PAGEABLE))
    step = step_timeline(found)
    walls = sorted(counts["cpu_ns"] for _, counts in found.steps)
    assert step.wall_ns == walls[(len(walls) - 1) // 2]
    kernels = sum(
        piece.count for lane in step.lanes for piece in lane.pieces if piece.kind in (Kind.KERNEL, Kind.GRAPH_KERNEL)
    )
    assert kernels == 38
    assert sum(piece.bytes for lane in step.lanes for piece in lane.pieces if "HtoD" in piece.kind) == 393_472 // 2


def test_device_work_by_name_is_all_device_work():
    sides = lay_out([tracetool.summarize(tracetool.read(path)) for path in (PAGEABLE, PINNED)]).sides
    found = by_name.device_work(sides)
    assert [sum(one.counts[side] for one in found) for side in (0, 1)] == [38 + 17 + 1 + 1, 37 + 2 + 1 + 1]
    fates = {one.name: one.fate for one in found}
    assert fates["Memcpy HtoD (Pageable -> Device)"] == "gone"
    assert fates["Memcpy HtoD (Pinned -> Device)"] == "new"
    assert words.number(1, Unit.COUNT) == "1"


def test_a_trace_without_a_gpu_shows_its_outermost_ops(tmp_path):
    events = [
        rng("ProfilerStep#1", 0, 100),
        op("aten::linear", 10, 40),
        op("aten::addmm", 12, 30),
        op("aten::relu", 50, 60),
    ]
    found = tracetool.summarize(tracetool.read(str(saved(tmp_path / "cpu.json.gz", events))))
    pieces = [piece for lane in step_timeline(found).lanes for piece in lane.pieces]
    assert [piece.name for piece in pieces if piece.kind is Kind.OP] == ["aten::linear", "aten::relu"]


@pytest.mark.parametrize("package", ["jinja2", "plotly"])
def test_without_its_packages_one_sentence_says_what_to_install(monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(tracetool.errors.SettingError, match=rf"a report needs {package}.*pip install"):
        invoke("report", PAGEABLE, "-o", tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_no_difference_in_speed_is_said_too():
    times = unprofiled.Times("b", ((1.0,),), 1.0, Ratio(0.98, 0.9, 1.1))
    baseline = unprofiled.Times("a", ((1.0,),), 1.0, None)
    assert (
        speed_words(times, baseline)
        == "No difference to be seen in a step, unprofiled: 1.02x as fast, 95 % interval 0.91x to 1.11x"
    )
    assert speed_words(unprofiled.Times("b", (), None, None), baseline) is None


def test_compare_writes_its_page_too(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, torch, tracetool\n"
        "for _ in range(3):\n"
        "    for _ in range(int(sys.argv[-1])):\n"
        "        torch.ones(3)\n"
        "    tracetool.step()\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["--vary", "arg:--n=3,1", "--cpu", "--rounds", "0", "--html", "page.html"]
    done = invoke("compare", "program.py", *arguments)
    assert done.exit_code == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "tracetool report tracetool-compare/3.json.gz tracetool-compare/1.json.gz" in text
