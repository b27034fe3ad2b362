// Shows the values of a chart's curves at the pointer, or where the arrow keys lead.
"use strict";

for (const figure of document.querySelectorAll("figure.chart")) {
  const chart = JSON.parse(figure.querySelector("script").textContent);
  const svg = figure.querySelector(".plot svg");
  const cursor = svg.querySelector(".cursor");
  const dots = svg.querySelector(".dots");
  const tip = figure.querySelector(".tip");
  // The places that the arrow keys go through: every x that a curve has.
  const stops = [...new Set(chart.series.flatMap((series) => series.x))].sort((a, b) => a - b);
  let stop = stops.length;

  const along = ([low, high, start, end], value) => start + ((value - low) / (high - low)) * (end - start);
  const height = (value) => along(chart.y, chart.powers ? Math.log(value) / Math.log(chart.powers) : value);

  function nearest(series, x) {
    let best = -1;
    for (let i = 0; i < series.x.length; i++) {
      const better = best < 0 || Math.abs(series.x[i] - x) < Math.abs(series.x[best] - x);
      if (series.y[i] !== null && better) best = i;
    }
    return best;
  }

  function show(x) {
    const reach = (chart.x[1] - chart.x[0]) / 25; // a curve that ended earlier has no value here
    const found = chart.series
      .map((series) => ({ series, i: nearest(series, x) }))
      .filter(({ series, i }) => i >= 0 && Math.abs(series.x[i] - x) <= reach);
    if (!found.length) return hide();
    // All are told at the x of the one that is nearest, as far as they have it.
    const at = found.map(({ series, i }) => series.x[i]).reduce((a, b) => (Math.abs(a - x) <= Math.abs(b - x) ? a : b));
    const place = along(chart.x, at);
    cursor.removeAttribute("hidden");
    for (const [name, value] of [["x1", place], ["x2", place], ["y1", chart.y[2]], ["y2", chart.y[3]]])
      cursor.setAttribute(name, value);
    dots.replaceChildren();
    tip.replaceChildren();
    const head = document.createElement("b");
    head.textContent = `${Number(at.toPrecision(6))} ${chart.xLabel}`;
    tip.append(head);
    for (const { series } of found) {
      const i = nearest(series, at);
      const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      for (const [name, value] of [["cx", along(chart.x, series.x[i])], ["cy", height(series.y[i])], ["r", 4]])
        dot.setAttribute(name, value);
      dot.setAttribute("class", `dot c${series.color}`);
      dots.append(dot);
      const line = document.createElement("div");
      const swatch = document.createElement("i");
      swatch.className = `c${series.color}`;
      const elsewhere = series.x[i] === at ? "" : ` (at ${Number(series.x[i].toPrecision(6))})`;
      line.append(swatch, `${series.name}: ${series.y[i]}${elsewhere}`);
      tip.append(line);
    }
    tip.hidden = false;
    const box = svg.getBoundingClientRect();
    const left = (place / svg.viewBox.baseVal.width) * box.width;
    const isRight = left > box.width / 2;
    tip.style.left = isRight ? "" : `${left + 12}px`;
    tip.style.right = isRight ? `${box.width - left + 12}px` : "";
  }

  function hide() {
    cursor.setAttribute("hidden", "");
    dots.replaceChildren();
    tip.hidden = true;
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const unit = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const [low, high, start, end] = chart.x;
    show(low + ((unit - start) / (end - start)) * (high - low));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    stop = Math.max(0, Math.min(stops.length - 1, stop + step));
    show(stops[stop]);
  });
}
