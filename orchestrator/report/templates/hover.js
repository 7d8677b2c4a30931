// Show the values of all lines at the pointer, from the points embedded in the page.
"use strict";
(() => {
  const SHOWN = 12;  // lines in the tip, nearest first
  const curves = JSON.parse(document.getElementById("hover-data").textContent);
  const tip = addHidden("tip"), rule = addHidden("rule");

  function addHidden(id) {
    const element = document.createElement("div");
    element.id = id;
    element.hidden = true;
    document.body.append(element);
    return element;
  }

  function format(value) {
    if (Math.abs(value) >= 1e4)
      for (const [size, prefix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
        if (Math.abs(value) >= size) return `${(value / size).toPrecision(3)} ${prefix}`;
    const text = value && Math.abs(value) < 1e-3 ? value.toPrecision(3) : String(+value.toFixed(4));
    return text.replace("-", "\u2212");
  }

  // Value of a line at x, interpolated between its points; null outside of them, if there are several
  function valueAt(line, x) {
    const last = line.x.length - 1;
    if (last === 0) return line.y[0];
    if (last < 0 || x < line.x[0] || x > line.x[last]) return null;
    let i = line.x.findIndex(point => point >= x);
    if (i === 0) i = 1;
    const share = (x - line.x[i - 1]) / (line.x[i] - line.x[i - 1]);
    return line.y[i - 1] + share * (line.y[i] - line.y[i - 1]);
  }

  // Lines with their values at x, those nearest to y first
  function nearest(panel, x, y) {
    return panel.lines
      .map(line => ({ label: line.label, value: valueAt(line, x) }))
      .filter(line => line.value !== null)
      .sort((a, b) => Math.abs(a.value - y) - Math.abs(b.value - y));
  }

  function addRow(label, value, kind) {
    const row = document.createElement("div");
    row.className = kind;
    for (const text of [label, value]) row.append(Object.assign(document.createElement("span"), { textContent: text }));
    tip.append(row);
  }

  function show(panel, box, event) {
    const [x0, x1] = panel.x, [y0, y1] = panel.y;
    const x = x0 + (event.clientX - box.left) / box.width * (x1 - x0);
    const found = nearest(panel, x, y1 - (event.clientY - box.top) / box.height * (y1 - y0));
    tip.replaceChildren();
    addRow(panel.axis, format(panel.log ? Math.exp(x) : x), "");
    found.slice(0, SHOWN).forEach((line, i) => addRow(line.label, format(line.value), i ? "" : "nearest"));
    rule.hidden = tip.hidden = found.length === 0;
    place(rule, event.clientX, box.top);
    rule.style.height = `${box.height}px`;
    const width = document.documentElement.clientWidth, right = event.clientX + 16;
    const left = right + tip.offsetWidth <= width ? right : event.clientX - 16 - tip.offsetWidth;
    place(tip, Math.max(0, left), box.top);
  }

  function place(element, x, y) {
    element.style.left = `${x + scrollX}px`;
    element.style.top = `${y + scrollY}px`;
  }

  function follow(event) {
    for (const area of event.currentTarget.querySelectorAll("[data-panel]")) {
      const box = area.getBoundingClientRect();
      const across = event.clientX >= box.left && event.clientX <= box.right;
      if (across && event.clientY >= box.top && event.clientY <= box.bottom) {
        show(curves[event.currentTarget.dataset.figure][area.dataset.panel], box, event);
        return;
      }
    }
    hide();
  }

  function hide() {
    rule.hidden = tip.hidden = true;
  }

  for (const svg of document.querySelectorAll("svg[data-figure]")) {
    if (!(svg.dataset.figure in curves)) continue;
    svg.addEventListener("pointermove", follow);
    svg.addEventListener("pointerleave", hide);
  }
})();
