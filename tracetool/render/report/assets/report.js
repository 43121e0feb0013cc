"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { tree, figures } = data;
  const root = document.documentElement;
  const $ = (id) => document.getElementById(id);
  const single = tree.sides.length === 1;

  // Numbers, as `tracetool.render.words` writes them.
  const grouped = (value, digits) => value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const three = (value) => (value >= 100 ? grouped(value, 0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));
  function number(value, unit) {
    if (unit === "ns") {
      for (const [name, size] of [["s", 1e9], ["ms", 1e6], ["us", 1e3]]) if (Math.abs(value) >= size) return `${three(value / size)} ${name}`;
      return `${grouped(value, 0)} ns`;
    }
    if (unit === "bytes") {
      const names = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
      let at = 0;
      while (Math.abs(value) >= 1024 && at < names.length - 1) { value /= 1024; at += 1; }
      return `${grouped(value, Number.isInteger(value) ? 0 : 1)} ${names[at]}`;
    }
    return Number.isInteger(value) ? grouped(value, 0) : Math.abs(value) >= 0.1 ? grouped(value, 2) : value.toPrecision(2);
  }
  const mean = (cell) => (cell === null || cell === undefined ? 0 : Array.isArray(cell) ? cell[3] : cell);
  const shown = (cell, unit) => (cell === null || cell === undefined ? "–" : Array.isArray(cell) ? cell.slice(0, 3).map((one) => number(one, unit)).join("..") : number(cell, unit));
  function ratio(before, after) {
    if (before === after) return "";
    if (!before) return "new";
    if (!after) return "gone";
    const value = after / before;
    return value >= 100 ? `x${value.toFixed(0)}` : `x${Number(value.toPrecision(3))}`;
  }
  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value !== undefined && value !== "") made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  // The table of ranges.
  const state = { sort: null, descending: true };
  const table = $("tree");
  const metricOf = Object.fromEntries(tree.metrics.map((metric) => [metric.name, metric]));
  const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;
  const scope = () => chosen("scope");
  const variant = () => (single ? 0 : Number($("variant")?.value ?? 1));
  const byVariant = () => chosen("view") === "variants";
  function columns() {
    if (byVariant()) return tree.sides.map((label, side) => ({ key: `side-${side}`, metric: $("metric").value, side, head: label, title: metricOf[$("metric").value].meaning }));
    return tree.metrics.filter((metric) => metric.shown || $("every").checked).map((metric) => ({ key: metric.name, metric: metric.name, side: variant(), head: metric.short, title: `${metric.name}: ${metric.meaning}` }));
  }
  const entry = (row, column) => row[scope()][column.metric];
  const changedIn = (row, side) => side > 0 && row.fates[side - 1] !== "same";
  function weight(row, column) {
    const found = entry(row, column);
    if (!found) return -1;
    const value = mean(found.cells[column.side]);
    return column.side === 0 || (byVariant() && column.side === 0) ? value : Math.abs(value - mean(found.cells[0]));
  }
  const verdictWords = { noise: "within noise", too_few: "too few samples", not_checked: "not checked", faster: "faster", slower: "slower" };
  function cell(row, column) {
    const found = entry(row, column);
    const metric = metricOf[column.metric];
    if (!found) return element("td", { class: "num none", title: `${column.title} Nothing here.` }, "·");
    const value = found.cells[column.side];
    const made = element("td", { class: "num" });
    const per = found.per === "call" && column.metric === "calls" ? "a call of its parent" : `a ${found.per}`;
    const title = [`${metric.name}, ${per}${metric.exact ? "" : ", profiled, median"}: ${metric.meaning}`];
    if (column.side === 0) {
      made.append(shown(value, metric.unit));
      if (!mean(value)) made.classList.add("same");
    } else {
      const before = found.cells[0];
      const verdict = found.verdicts[column.side - 1];
      const counted = verdict === "more" || verdict === "fewer";
      const timed = verdict === "faster" || verdict === "slower";
      if ((counted || !metric.exact) && !byVariant() && shown(before, metric.unit) !== shown(value, metric.unit)) {
        made.append(element("span", { class: "old" }, `${shown(before, metric.unit)} → `));
      }
      made.append(shown(value, metric.unit));
      if (counted || timed) {
        const less = verdict === "fewer" || verdict === "faster";
        made.append(element("span", { class: `chg ${less ? "less" : "more"}` }, `${less ? "▼" : "▲"} ${ratio(mean(before), mean(value))}`));
      } else if (metric.exact) made.classList.add("same");
      title.push(`${tree.sides[0]}: ${shown(before, metric.unit)}`, `${tree.sides[column.side]}: ${shown(value, metric.unit)}`);
      if (verdictWords[verdict]) title.push(verdictWords[verdict]);
    }
    made.title = title.join("\n");
    return made;
  }
  function visible() {
    const wanted = $("filter").value.trim().toLowerCase();
    const only = !single && $("changed").checked;
    return tree.rows.filter((row) => {
      if (wanted && !row.path.toLowerCase().includes(wanted)) return false;
      if (!only) return true;
      return byVariant() ? row.fates.some((fate) => fate !== "same") : changedIn(row, variant());
    });
  }
  function draw() {
    const list = columns();
    const rows = visible();
    if (state.sort !== null) {
      const column = list.find((one) => one.key === state.sort);
      const sign = state.descending ? -1 : 1;
      if (state.sort === "range") rows.sort((a, b) => -sign * a.path.localeCompare(b.path));
      else if (column) rows.sort((a, b) => sign * (weight(a, column) - weight(b, column)));
    }
    const flat = state.sort !== null || $("filter").value.trim() !== "";
    const head = (key, text, title, numeric) => {
      const button = element("button", { type: "button", title, "data-sort": key }, text);
      const sorted = state.sort === key ? (state.descending ? "descending" : "ascending") : "none";
      return element("th", { scope: "col", class: numeric ? "num" : "", "aria-sort": sorted, title }, button);
    };
    const sorts = single ? "Sorts by value." : "Sorts by the size of the change.";
    table.tHead.replaceChildren(element("tr", {}, head("range", "range", "Sorts by path; once more, the tree again.", false), ...list.map((column) => head(column.key, column.head, `${column.title} ${sorts}`, true))));
    table.tBodies[0].replaceChildren(...rows.map((row) => {
      const side = variant();
      const fate = byVariant() || side === 0 ? "" : row.fates[side - 1];
      const name = element("th", { scope: "row", title: [row.path, row.note].filter(Boolean).join("\n") }, flat ? row.path : row.name);
      if (!flat) name.style.paddingLeft = `${0.7 + row.depth * 1.05}rem`;
      if (fate === "added" || fate === "gone") name.append(" ", element("span", { class: `range-note ${fate}` }, fate));
      if (row.note) name.append(" ", element("span", { class: "range-note" }, row.note));
      return element("tr", {}, name, ...list.map((column) => cell(row, column)));
    }));
    const left = tree.left ? ` ${tree.left} more are left out of this page; tracetool diff --format json has all.` : "";
    $("tree-foot").textContent = `${rows.length} of ${tree.rows.length} ranges.${left} ${single ? "" : "▼ less than the baseline, ▲ more."}`;
  }
  table.addEventListener("click", (event) => {
    const key = event.target.closest("[data-sort]")?.dataset.sort;
    if (!key) return;
    if (state.sort !== key) Object.assign(state, { sort: key, descending: true });
    else if (state.descending) state.descending = false;
    else state.sort = null;
    draw();
    table.querySelector(`[data-sort="${CSS.escape(key)}"]`)?.focus();
  });
  $("controls").addEventListener("input", () => {
    if ($("pick-variant")) { $("pick-variant").hidden = byVariant(); $("pick-metric").hidden = !byVariant(); $("every").parentElement.hidden = byVariant(); }
    draw();
  });
  for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
  if ($("metric")) {
    const first = ["syncs", "kernel_launches", "ops"].find((name) => metricOf[name]);
    $("metric").append(...tree.metrics.map((metric) => element("option", { value: metric.name, selected: metric.name === first ? "selected" : undefined }, metric.name)));
  }
  draw();

  // Other tables sort by their columns as they are read.
  const size = { B: 1, KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3, ns: 1, us: 1e3, ms: 1e6, s: 1e9 };
  function value(text) {
    const [digits, unit] = text.trim().split(" ");
    const parsed = Number(digits.replaceAll(",", ""));
    return Number.isNaN(parsed) ? text : parsed * (size[unit] ?? 1);
  }
  for (const sortable of document.querySelectorAll("table.sortable")) {
    const original = [...sortable.tBodies[0].rows];
    [...sortable.tHead.rows[0].cells].forEach((head, index) => {
      const button = element("button", { type: "button" }, head.textContent);
      head.replaceChildren(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const next = now === "none" ? "descending" : now === "descending" ? "ascending" : "none";
        for (const other of sortable.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", next);
        const sign = next === "descending" ? -1 : 1;
        const rows = [...original];
        if (next !== "none") rows.sort((a, b) => {
          const [one, two] = [value(a.cells[index].textContent), value(b.cells[index].textContent)];
          if (typeof one === "number" && typeof two === "number") return sign * (one - two);
          return -sign * String(one).localeCompare(String(two));
        });
        sortable.tBodies[0].replaceChildren(...rows);
      });
    });
  }

  // Figures.
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const narrow = () => window.innerWidth < 640;
  const merge = (base, more) => {
    const made = { ...base };
    for (const [key, item] of Object.entries(more)) made[key] = item && typeof item === "object" && !Array.isArray(item) ? merge(base[key] ?? {}, item) : item;
    return made;
  };
  function themed(layout, name) {
    const axis = { color: css("--soft"), gridcolor: css("--grid"), tickfont: { size: narrow() ? 10 : 12 }, title: { font: { size: 12 } } };
    const made = merge(layout, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: css("--ink"), size: 12 },
      xaxis: axis, yaxis: axis,
      hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink"), size: 12 }, align: "left" },
    });
    if (layout.legend) made.legend = merge(layout.legend, { font: { color: css("--soft"), size: narrow() ? 10 : 12 } });
    if (layout.shapes) made.shapes = layout.shapes.map((shape) => merge(shape, { line: { color: css("--faint") } }));
    // What is as wide as the screen would be cut off by the edge of the paper.
    if ("before" in root.dataset && !name.startsWith("bar-")) made.width = 680;
    if (name === "timeline") made.height = layout.height + (narrow() ? 90 : 20);
    return made;
  }
  const places = () => [...document.querySelectorAll("[data-figure]")].filter((place) => figures[place.dataset.figure]);
  const settings = (name) => ({ displayModeBar: false, responsive: true, scrollZoom: name === "timeline" });
  function copied(trace) {
    // Plotly writes into what it draws.
    const made = structuredClone(trace);
    if (made.type === "bar" && made.orientation === "h" && !made.base) made.textfont = { color: css("--ink") };
    if (made.error_x) made.error_x.color = css("--soft");
    return made;
  }
  const drawOne = (place) => {
    const figure = figures[place.dataset.figure];
    return window.Plotly.react(place, figure.data.map(copied), themed(figure.layout, place.dataset.figure), settings(place.dataset.figure));
  };
  async function drawAll() {
    for (const place of places()) await drawOne(place);
  }
  async function unpacked() {
    const bytes = Uint8Array.from(atob($("bundle").textContent), (one) => one.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.nonce = document.currentScript?.nonce || document.querySelector("script[nonce]").nonce;
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }
  async function start() {
    if (typeof DecompressionStream === "undefined") {
      for (const place of places()) place.textContent = "This browser is too old to draw figures; the tables have the same numbers.";
      return;
    }
    await unpacked();
    await drawAll();
    watch();
  }
  start().catch((error) => console.error(error)).finally(() => { root.dataset.ready = "yes"; });

  // The bars of one range, from the table's numbers.
  const of = $("bars-of");
  if (of) {
    tree.rows.forEach((row, index) => { if (!row.name.startsWith("(")) of.append(element("option", { value: index }, row.path)); });
    of.addEventListener("input", () => {
      for (const place of document.querySelectorAll("[data-metric]")) {
        const original = figures[place.dataset.figure];
        const per = place.parentElement.querySelector(".bar-per");
        per.dataset.whole ??= per.textContent;
        let trace = original.data[0];
        per.textContent = per.dataset.whole;
        if (of.value !== "") {
          const found = tree.rows[Number(of.value)].total[place.dataset.metric];
          const values = tree.sides.map((_, side) => mean(found?.cells[side]));
          const unit = metricOf[place.dataset.metric].unit;
          trace = { ...trace, x: values, text: values.map((one) => number(one, unit)), hovertext: values.map((one) => number(one, unit)) };
          per.textContent = found ? `a ${found.per}` : "";
        }
        window.Plotly.react(place, [copied(trace)], themed(original.layout, place.dataset.figure), settings(place.dataset.figure));
      }
    });
  }

  // Zoom by buttons and keys.
  function zoom(how) {
    const place = document.querySelector('[data-figure="timeline"]');
    if (!place?.layout) return;
    const [low, high] = place.layout.xaxis.range;
    const width = high - low;
    const next = {
      in: [low + width / 4, high - width / 4], out: [low - width / 2, high + width / 2],
      left: [low - width / 4, high - width / 4], right: [low + width / 4, high + width / 4],
      reset: figures.timeline.layout.xaxis.range,
    }[how];
    window.Plotly.relayout(place, { "xaxis.range": [...next] });
  }
  for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", () => zoom(button.dataset.zoom));
  document.querySelector(".timeline")?.addEventListener("keydown", (event) => {
    const how = { "+": "in", "=": "in", "-": "out", ArrowLeft: "left", ArrowRight: "right", 0: "reset", Home: "reset" }[event.key];
    if (how) { event.preventDefault(); zoom(how); }
  });

  // Light and dark.
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  // All at once: who prints does not wait.
  const redraw = () => { if (window.Plotly) places().forEach(drawOne); };
  function watch() {
    dark.addEventListener("change", redraw);
    window.addEventListener("beforeprint", () => { root.dataset.before = root.dataset.theme ?? ""; root.dataset.theme = "light"; redraw(); });
    window.addEventListener("afterprint", () => {
      if (root.dataset.before) root.dataset.theme = root.dataset.before; else delete root.dataset.theme;
      delete root.dataset.before;
      redraw();
      for (const place of places()) window.Plotly.relayout(place, { width: null, autosize: true });
    });
  }
  $("theme").addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; redraw(); });
})();
