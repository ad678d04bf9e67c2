"use strict";
// Draws what the server says and asks it a few times a second whether there is more; one question at a time.
const place = document.getElementById("facts");
const facts = JSON.parse(place.dataset.facts);
const base = `/runs/${place.dataset.run}`;
const PAUSE = 300;  // milliseconds
// This runs before Plotly's megabytes do, so that the first numbers come meanwhile.
const drawing = new Promise((there) => document.getElementById("plotly").addEventListener("load", there));
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const known = { metric: {}, norms: {}, similarity: {}, traffic: {}, epsilon: {}, masks: {}, timeline: [], compared: null };
const WHOLE_SITE = "any whole site";
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function layout(more) {
  const axis = { gridcolor: color("--line"), linecolor: color("--line"), zeroline: false, automargin: true };
  return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: color("--ink"), size: 13 },
    margin: { l: 50, r: 12, t: 34, b: 40 }, hovermode: "closest", legend: { orientation: "h", y: -0.25 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: color("--soft"), activecolor: color("--ink") },
    ...more, xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis } };
}

// A picture is drawn when it is looked at: with many sites and rounds one takes a while.
const stale = new Set();
const visible = new Set();
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const name = target.id.slice("plot-".length);
    if (isIntersecting) visible.add(name);
    else visible.delete(name);
  }
  draw();
}, { rootMargin: "150px" });
document.querySelectorAll(".plot").forEach((element) => watcher.observe(element));

// A log of an older version says nothing of the updates; then there is no picture of them.
function has(name) {
  if (name === "compared") return known.compared !== null && known.compared.sites.length > 1;
  return name === "timeline" ? known.timeline.length > 0 : Object.keys(known[name]).length > 0;
}

function show(name, traces, more) {
  const element = document.getElementById(`plot-${name}`);
  const image = { format: "svg", filename: `run-${place.dataset.run}-${name}` };
  Plotly.react(element, traces, layout(more), { responsive: true, displaylogo: false, displayModeBar: true,
    modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]], toImageButtonOptions: image });
}

// Plotly reads some HTML in names and labels.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// A site has the same colour in all pictures.
const numbers = new Map();
function own(site) {
  if (site === "pooled" || site === WHOLE_SITE) return color("--ink");
  if (!numbers.has(site)) numbers.set(site, numbers.size);
  return color(`--c${numbers.get(site) % 8}`);
}

function lines(found) {
  return Object.entries(found).map(([site, line]) => {
    const together = site === "pooled" || site === WHOLE_SITE;
    return { type: "scatter", mode: line.step.length > 1 ? "lines" : "markers", name: plain(site === "pooled" ? "all sites" : site),
      x: line.step, y: line.value, opacity: together ? 1 : 0.8,
      line: { width: together ? 3.5 : 1.5, color: own(site) },
      marker: { color: own(site) } };
  });
}

function bars(found) {
  const kinds = { answered: "--bar", working: "--accent", refused: "--c1", "not scored": "--c1" };
  const whole = { type: "bar", orientation: "h", name: "asked", y: [], x: [], base: [], marker: { color: [] }, hovertext: [], hoverinfo: "text", showlegend: false };
  const work = { ...whole, name: "work", y: [], x: [], base: [], hovertext: [], marker: { color: [] } };
  const now = Date.now();
  for (const bar of found) {
    const start = Date.parse(bar.sent), end = bar.received ? Date.parse(bar.received) : bar.end === "working" && document.querySelector('[data-status="running"]') ? now : start + 500;
    const put = (trace, from, to, kind) => {
      trace.y.push(plain(bar.site)); trace.base.push(new Date(from).toISOString()); trace.x.push(Math.max(to - from, 1)); trace.marker.color.push(color(kind));
      trace.hovertext.push(plain(`${bar.site}, round ${bar.round}, ${bar.what}: ${bar.end}${bar.seconds === null ? "" : `, ${bar.seconds.toFixed(2)} s of work`}`));
    };
    put(whole, start, end, kinds[bar.end] || "--bar");
    if (bar.received && bar.seconds) put(work, Math.max(start, end - 1000 * bar.seconds), end, bar.what === "train" ? "--c0" : "--c2");
  }
  return [whole, work];
}

function grid(found) {
  const sites = found.sites.map(plain), few = sites.length <= 12;
  return [{ type: "heatmap", x: sites, y: sites, z: found.cosines, zmin: -1, zmax: 1, xgap: 1, ygap: 1,
    colorscale: [[0, color("--c1")], [0.5, color("--card")], [1, color("--c0")]], texttemplate: few ? "%{z:.2f}" : "",
    hovertemplate: "%{y} and %{x}: %{z:.3f}<extra></extra>", colorbar: { thickness: 10, outlinewidth: 0 } }];
}

// A dashed line as wide as what is drawn.
function level(drawn, name, value, number) {
  const steps = drawn.flatMap((each) => [each.x[0], each.x[each.x.length - 1]]);
  return { type: "scatter", mode: "lines", name: plain(name), x: [Math.min(...steps), Math.max(...steps)], y: [value, value],
    line: { dash: "dash", width: 2, color: color(`--c${(number + 4) % 8}`) } };
}

const round = { title: { text: "round" } };
const pictures = {
  metric() {
    const drawn = lines(known.metric);
    drawn.push(...facts.beside.map((each, number) => level(drawn, each.name, each.value, number)));
    show("metric", drawn, { xaxis: { title: { text: facts.unit } }, yaxis: { title: { text: plain(`${facts.metric}, ${facts.split}`) } } });
  },
  timeline() {
    const sites = [...new Set(known.timeline.map((bar) => plain(bar.site)))].sort().reverse();
    document.getElementById("plot-timeline").style.height = `${Math.max(220, 90 + 22 * sites.length)}px`;
    show("timeline", bars(known.timeline), { barmode: "overlay", xaxis: { type: "date" }, yaxis: { type: "category", categoryorder: "array", categoryarray: sites } });
  },
  norms() { show("norms", lines(known.norms), { xaxis: round, yaxis: { rangemode: "tozero" } }); },
  similarity() { show("similarity", lines(known.similarity), { xaxis: round, yaxis: { range: [-1.05, 1.05] } }); },
  compared() { show("compared", grid(known.compared), { margin: { l: 50, r: 12, t: 34, b: 60 }, yaxis: { autorange: "reversed" } }); },
  epsilon() {
    const drawn = lines(known.epsilon);
    drawn.push(...facts.budgets.map((each, number) => level(drawn, each.name, each.value, number)));
    show("epsilon", drawn, { xaxis: round, yaxis: { title: { text: "epsilon" }, rangemode: "tozero" } });
  },
  masks() { show("masks", lines(known.masks), { xaxis: round, yaxis: { rangemode: "tozero" } }); },
  traffic() { show("traffic", lines(known.traffic), { xaxis: round, yaxis: { title: { text: "bytes" }, rangemode: "tozero" } }); },
};

// One picture a frame, so that the first is there before the last is drawn; none in a tab that nobody looks at.
let isDrawing = false;
function draw() {
  const name = Object.keys(pictures).find((each) => visible.has(each) && stale.has(each) && has(each));
  if (isDrawing || !name) return;
  isDrawing = true;
  stale.delete(name);
  requestAnimationFrame(() => { isDrawing = false; draw(); });
  pictures[name]();
}

function redraw(names) {
  for (const name of names) {
    const element = document.getElementById(`plot-${name}`);
    if (!element) continue;
    element.closest("section").hidden = !has(name);
    stale.add(name);
  }
  draw();
}

function last(found) {
  return Math.max(-1, ...Object.values(found).map((line) => line.step[line.step.length - 1]));
}

function add(to, found) {
  for (const [site, line] of Object.entries(found)) {
    const mine = (to[site] = to[site] || { step: [], value: [] });
    const from = line.step[0];
    let keep = mine.step.length;
    while (keep && mine.step[keep - 1] >= from) keep -= 1;
    mine.step = mine.step.slice(0, keep).concat(line.step);
    mine.value = mine.value.slice(0, keep).concat(line.value);
  }
}

async function ask(names, after) {
  const query = new URLSearchParams({ metric: facts.metric, split: facts.split, after, parts: names.join() });
  const found = await (await fetch(`${base}/series?${query}`)).json();
  await drawing;
  for (const name of names) {
    if (name === "timeline" || name === "compared") known[name] = found[name];
    else add(known[name], found[name]);
  }
  redraw(names);
}

const first = ["metric", "timeline"];
const others = ["norms", "similarity", "compared", "traffic", "epsilon", "masks"];

function more() {
  // What was last may have been half there: it is asked for again. Masked rounds never have lengths.
  const begun = [known.metric, known.norms, known.traffic, known.epsilon].filter((each) => Object.keys(each).length);
  const after = Math.min(...begun.map(last), Infinity) - 1;
  return ask([...first, ...others], Number.isFinite(after) ? Math.max(after, -1) : -1);
}

async function begin() {
  await ask(first, -1);
  await ask(others, -1);
}

async function look() {
  const says = document.getElementById("connection");
  try {
    const board = document.getElementById("board");
    const answer = await fetch(`${base}/board?version=${encodeURIComponent(board.firstElementChild.dataset.version)}`);
    if (answer.status === 200) {
      const before = { ...board.firstElementChild.dataset };
      board.innerHTML = await answer.text();
      const now = board.firstElementChild.dataset;
      // With the first numbers, and at the end, the page has sections that it did not have.
      if (now.measured !== before.measured || now.status !== before.status) return location.reload();
      await more();
    } else if (!answer.ok) throw new Error(answer.status);
    says.textContent = "";
  } catch {
    says.textContent = "No answer from the monitor; the page shows what it had.";
  }
  setTimeout(look, PAUSE);
}

dark.addEventListener("change", () => redraw(Object.keys(pictures)));
begin().finally(() => setTimeout(look, PAUSE));
