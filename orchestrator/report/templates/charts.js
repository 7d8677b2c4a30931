"use strict";
(() => {
  const { axis: axisLabel, budget, charts } = JSON.parse(document.getElementById("data").textContent);
  const holder = document.getElementById("charts");
  const dashes = [[], [7, 3], [2, 3], [7, 3, 2, 3]];
  const variable = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = style => variable(style === 0 ? "--ink" : `--c${(style - 1) % 6 + 1}`);
  const dash = style => style === 0 ? [] : dashes[Math.floor((style - 1) / 6) % 4];
  const short = value => {
    if (value === null || value === undefined) return "—";
    for (const [size, prefix] of [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e3, " k"]])
      if (Math.abs(value) >= size) return +(value / size).toPrecision(4) + prefix;
    return String(+value.toPrecision(4)).replace("-", "−");
  };
  const made = [];

  function draw(chart) {
    const figure = document.createElement("figure");
    figure.className = "chart";
    const title = document.createElement("h4");
    title.textContent = chart.unit ? `${chart.title} (${chart.unit})` : chart.title;
    figure.append(title);
    holder.append(figure);
    const axis = { stroke: () => variable("--soft"), grid: { stroke: () => variable("--rule"), width: 1 },
                   ticks: { show: false }, font: "11px system-ui", labelFont: "11px system-ui", values: (u, marks) => marks.map(short) };
    const options = {
      width: figure.clientWidth, height: 300,
      scales: { x: { time: false } },
      cursor: { drag: { x: true, y: true, uni: 20 }, focus: { prox: 24 } },
      focus: { alpha: 0.25 },
      axes: [{ ...axis, label: axisLabel, labelSize: 16, labelGap: 0, size: 30 }, { ...axis, size: 58 }],
      series: [{ label: budget, value: (u, v) => short(v) }].concat(chart.series.map(line => ({
        label: line.label, spanGaps: true, width: 1.6, dash: dash(line.style), stroke: () => colour(line.style),
        points: { show: chart.x.length <= 40, size: 5 }, value: (u, v) => short(v),
      }))),
    };
    const plot = new uPlot(options, [chart.x, ...chart.series.map(line => line.y)], figure);
    made.push([plot, figure]);
  }

  charts.forEach(draw);
  addEventListener("resize", () => made.forEach(([plot, figure]) => {
    plot.setSize({ width: figure.clientWidth, height: 300 });
  }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => made.forEach(([plot]) => plot.redraw()));
})();
