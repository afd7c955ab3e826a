"use strict";
// Draws the charts that the page carries as JSON, in the reader's light or dark colours.
(function () {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

  function color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function themed(layout) {
    const ink = color("--ink"), line = color("--line"), paper = color("--paper");
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line };
    const out = Object.assign({}, layout, {
      margin: Object.assign({ l: 60, r: 24, b: 50 }, layout.margin),
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, size: 12, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { bgcolor: paper, bordercolor: line, align: "left", font: { color: ink } },
    });
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis/.test(key)) out[key] = Object.assign({}, axis, layout[key]);
    }
    return out;
  }

  function draw() {
    for (const chart of charts) {
      const place = document.getElementById(chart.id);
      Plotly.react(place, chart.traces, themed(chart.layout), config);
    }
  }

  for (const button of document.querySelectorAll("button[data-chart]")) {
    button.addEventListener("click", function () {
      const range = [Number(button.dataset.from), Number(button.dataset.to)];
      Plotly.relayout(button.dataset.chart, { "xaxis.range": range });
    });
  }
  draw();
  dark.addEventListener("change", draw);
})();
