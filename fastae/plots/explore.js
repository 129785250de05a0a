"use strict";
// The map of the codes, the units and the learning curves of a report. Charts are plotly's; the rest is the page's.
(async () => {
  const data = JSON.parse(document.getElementById("explore-data").textContent);
  const { rows, map, layers, curves } = data;
  const by = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (light) => style(`--c${light.slice(1).toLowerCase()}`) || light;
  const short = (value) => (value === null ? "none" : String(Number(value.toPrecision(4))));
  const classColours = ["#332288", "#cc6677", "#117733", "#88ccee", "#882255", "#ddcc77", "#44aa99", "#aa4499",
    "#999933", "#1f2328"];
  const order = rows.numbers.map((_, n) => n);
  for (const layer of layers) layer.steps = bytes(layer.codes);
  const step = (layer, unit, row) => layer.steps[unit * order.length + row];
  const code = (layer, unit, row) =>
    layer.low[unit] + (step(layer, unit, row) / 255) * (layer.high[unit] - layer.low[unit]);
  const label = (row) => (rows.labels ? rows.names[rows.labels[row]] : null);

  const plotly = new Blob([bytes(by("plotly").textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = make("script");
  script.textContent = await new Response(plotly).text();
  document.head.append(script);

  // Tiles and values of rows and units
  const tile = (tiles, sheet, number, size) => {
    const scale = size / Math.max(tiles.width, tiles.height);
    const [width, height] = [tiles.width * scale, tiles.height * scale];
    const element = make("span", { className: tiles.photo ? "tile" : "tile invert" });
    Object.assign(element.style, {
      width: `${width}px`, height: `${height}px`, backgroundImage: `url(${tiles.sheets[sheet]})`,
      backgroundSize: `${tiles.columns * width}px ${tiles.lines * height}px`,
      backgroundPosition: `${-(number % tiles.columns) * width}px ${-Math.floor(number / tiles.columns) * height}px`,
    });
    return element;
  };
  const captioned = (text, element) => make("figure", {}, element, make("figcaption", { textContent: text }));
  const bars = (entries) => {
    const most = Math.max(...entries.map(([, value]) => Math.abs(value))) || 1;
    const table = make("table", { className: "bars" });
    for (const [feature, value] of entries) {
      const bar = make("span", { className: value < 0 ? "negative" : "" });
      bar.style.width = `${(100 * Math.abs(value)) / most}%`;
      table.append(make("tr", {}, make("th", { scope: "row", textContent: rows.features[feature] }),
        make("td", { className: "bar" }, bar), make("td", { textContent: short(value) })));
    }
    return table;
  };
  const describe = (row) => {
    const parts = [`row ${rows.numbers[row]}`, `error ${short(rows.errors[row])}`];
    if (rows.labels) parts.splice(1, 0, `label ${label(row)}`);
    return parts.join(", ");
  };
  const showRow = (row) => {
    const card = by("row");
    card.dataset.row = row;
    card.replaceChildren(make("p", { textContent: describe(row) }));
    if (rows.tiles) {
      card.append(make("div", { className: "pair" }, captioned("row", tile(rows.tiles, 0, row, 112)),
        captioned("reconstruction", tile(rows.tiles, 1, row, 112))));
    } else {
      const table = make("table", { className: "bars" });
      table.append(make("tr", {}, ...["feature", "row", "made"].map((text) => make("th", { textContent: text }))));
      for (const [feature, value, made] of rows.values[row]) {
        table.append(make("tr", {}, make("th", { scope: "row", textContent: rows.features[feature] }),
          make("td", { textContent: short(value) }), make("td", { textContent: short(made) })));
      }
      card.append(table);
    }
  };

  // Map: a trace per class, or one that is coloured by a number
  let shown = { kind: rows.labels ? "label" : "error" };
  const layout = (more) => ({
    margin: { l: 54, r: 8, t: 34, b: 44 }, paper_bgcolor: style("--card"), plot_bgcolor: style("--card"),
    font: { color: style("--ink"), size: 12, family: "system-ui, sans-serif" }, ...more,
  });
  const axis = (title, more) => ({
    title: { text: title }, gridcolor: style("--line"), zeroline: false, automargin: true, ...more,
  });
  const touch = matchMedia("(pointer: coarse)");
  const config = {
    responsive: true, displaylogo: false, scrollZoom: !touch.matches, displayModeBar: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "toImage"],
  };
  const drawMap = () => {
    const trace = (members, marker, name) => ({
      type: "scatter", mode: "markers", x: members.map((n) => map.x[n]), y: members.map((n) => map.y[n]),
      customdata: members, hoverinfo: "none", name, marker: { size: 6, opacity: 0.8, ...marker },
    });
    let traces;
    if (shown.kind === "label") {
      const found = Object.keys(rows.names).map(Number).sort((a, b) => a - b);
      traces = found.map((value, n) => trace(order.filter((row) => rows.labels[row] === value), {
        color: colour(classColours[n % 10]),
        symbol: ["circle", "triangle-up", "square", "diamond", "cross"][Math.floor(n / 10) % 5],
      }, rows.names[value]));
    } else {
      const values = shown.kind === "error" ? rows.errors : order.map((n) => code(layers[shown.layer], shown.unit, n));
      const marker = { color: values, colorscale: "Viridis", showscale: true,
        colorbar: { thickness: 12, title: { text: shown.kind === "error" ? "error" : `unit ${layers[shown.layer].units[shown.unit]}` } } };
      traces = [trace(order, marker, "rows")];
    }
    const ticks = { showticklabels: map.units, ticks: "" };
    Plotly.react(by("map"), traces, layout({
      xaxis: axis(map.axes[0], ticks), yaxis: axis(map.axes[1], ticks), hovermode: "closest", hoverdistance: 30,
      dragmode: touch.matches ? false : "pan", showlegend: shown.kind === "label", uirevision: "map",
      legend: { itemsizing: "constant" },
    }), config);
  };
  const choice = by("map-colour");
  const setColours = (value) => {
    const [kind, layer, unit] = value.split(".");
    shown = { kind, layer: Number(layer), unit: Number(unit) };
    if (![...choice.options].some((option) => option.value === value)) {
      choice.querySelector(".unit")?.remove();
      const text = `${layers[layer].name}, unit ${layers[layer].units[unit]}`;
      choice.append(make("option", { value, textContent: text, className: "unit" }));
    }
    choice.value = value;
    drawMap();
  };
  if (rows.labels) choice.append(make("option", { value: "label", textContent: "by label" }));
  choice.append(make("option", { value: "error", textContent: "by reconstruction error" }));
  choice.addEventListener("change", () => setColours(choice.value));
  drawMap();
  for (const event of ["plotly_hover", "plotly_click"]) by("map").on(event, ({ points }) => showRow(points[0].customdata));
  showRow(0);

  // Units
  const isDead = (layer, unit) => layer.high[unit] - layer.low[unit] < 1e-3;
  const showUnit = (number, unit) => {
    const layer = layers[number];
    for (const button of by("unit-list").children) button.setAttribute("aria-pressed", button.dataset.unit === String(unit));
    const counts = Array(24).fill(0);
    for (const row of order) counts[Math.min(23, Math.floor((24 * step(layer, unit, row)) / 256))] += 1;
    const most = Math.max(...counts);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    for (const [name, value] of Object.entries({ class: "histogram", viewBox: "0 0 24 100", role: "img",
      preserveAspectRatio: "none", "aria-label": "Histogram of the unit's codes" })) svg.setAttribute(name, value);
    counts.forEach((count, n) => {
      const bar = document.createElementNS(svg.namespaceURI, "rect");
      const height = (100 * count) / most;
      for (const [name, value] of Object.entries({ x: n + 0.05, y: 100 - height, width: 0.9, height })) bar.setAttribute(name, value);
      svg.append(bar);
    });
    const card = by("unit");
    card.dataset.unit = layer.units[unit];
    card.replaceChildren(
      make("p", { textContent: `${layer.name}, unit ${layer.units[unit]}: mean code ${short(layer.mean[unit])}${isDead(layer, unit) ? ", dead" : ""}` }),
      layer.tiles ? make("div", { className: "pair" }, captioned("weights over the input", tile(layer.tiles, 0, unit, 112)))
        : bars(layer.weights[unit]),
      svg, make("div", { className: "ends" }, make("span", { textContent: short(layer.low[unit]) }),
        make("span", { textContent: "codes of the rows" }), make("span", { textContent: short(layer.high[unit]) })),
      make("p", {}, make("button", { type: "button", textContent: "Colour the map by it",
        onclick: () => { setColours(`unit.${number}.${unit}`); by("explore").scrollIntoView(); } })));
    const strongest = [...order].sort((a, b) => step(layer, unit, b) - step(layer, unit, a) || a - b).slice(0, 12);
    by("strongest-title").textContent = `Rows with the largest code of unit ${layer.units[unit]}`;
    by("strongest").replaceChildren(...strongest.map((row) => {
      const button = make("button", { type: "button", title: describe(row), onclick: () => showRow(row) });
      if (rows.tiles) button.append(tile(rows.tiles, 0, row, 56));
      button.append(make("div", { textContent: `${rows.tiles ? "" : `row ${rows.numbers[row]}: `}${short(code(layer, unit, row))}` }));
      button.dataset.row = row;
      return button;
    }));
  };
  const listUnits = () => {
    const number = Number(by("layer").value), layer = layers[number];
    const find = by("find").value.trim().toLowerCase();
    const wanted = new Set(find.split(/[\s,]+/).map(Number));
    let units = layer.units.map((_, n) => n);
    if (find === "dead") units = units.filter((n) => isDead(layer, n));
    else if (find) units = units.filter((n) => wanted.has(layer.units[n]));
    if (by("order").value === "number") units.sort((a, b) => layer.units[a] - layer.units[b]);
    if (by("order").value === "mean") units.sort((a, b) => layer.mean[b] - layer.mean[a]);
    by("found").textContent = layer.total > layer.units.length
      ? `${units.length} of the ${layer.units.length} most used of ${layer.total} units` : `${units.length} of ${layer.total} units`;
    by("unit-list").replaceChildren(...units.map((unit) => {
      const button = make("button", { type: "button", title: `unit ${layer.units[unit]}`, onclick: () => showUnit(number, unit) });
      if (layer.tiles) button.append(tile(layer.tiles, 0, unit, 36));
      button.append(make("div", { textContent: layer.units[unit] }));
      button.dataset.unit = unit;
      return button;
    }));
    if (units.length) showUnit(number, units[0]);
  };
  layers.forEach((layer, n) => by("layer").append(make("option", { value: n, textContent: `${layer.name}: ${layer.total} units` })));
  for (const id of ["layer", "order", "find"]) by(id).addEventListener("input", listUnits);
  listUnits();

  // Learning curves: those that are ticked, in one chart
  const chart = by("curves").querySelector(".chart");
  const palette = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];
  const box = (text, checked) => {
    const input = make("input", { type: "checkbox", checked, onchange: () => drawCurves() });
    by("curve-choices").append(make("label", {}, input, text));
    return input;
  };
  const boxes = curves.map((curve, n) => box(curve.name, n === 0));
  const parts = { training: box("training", true), validation: box("validation", true) };
  const logarithmic = box("logarithmic", false);
  const drawCurves = () => {
    const ticked = curves.filter((_, n) => boxes[n].checked);
    const traces = curves.flatMap((curve, n) => Object.entries(curve.parts)
      .filter(([part]) => boxes[n].checked && parts[part].checked)
      .map(([part, [x, y]]) => ({ x, y, mode: x.length > 1 ? "lines" : "markers", name: `${curve.name}, ${part}`,
        line: { color: colour(palette[n % palette.length]), dash: part === "training" ? "solid" : "dash" } })));
    const units = [...new Set(ticked.map((curve) => curve.unit))];
    Plotly.react(chart, traces, layout({
      xaxis: axis("epoch"), yaxis: axis(units.length === 1 ? units[0].replace(", ", ",<br>") : "", {
        type: logarithmic.checked ? "log" : "linear",
        ...(ticked.length === 1 && ticked[0].limits && !logarithmic.checked ? { range: ticked[0].limits } : { autorange: true }),
      }),
      hovermode: "x unified", hoverlabel: { bgcolor: style("--page") }, showlegend: true,
      legend: { orientation: "h", y: -0.25 }, dragmode: touch.matches ? false : "zoom",
    }), { ...config, scrollZoom: false });
  };
  if (curves.length) drawCurves();
  else by("curves").remove();

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawMap();
    if (curves.length) drawCurves();
  });
  document.documentElement.dataset.explore = "ready";
})();
