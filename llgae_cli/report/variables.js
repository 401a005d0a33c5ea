// A row of a table in the explorer: the decoded variables in their own units, with bars.
"use strict";

const variables = (() => {
  const SPAN = 4; // standard units that a variable's bar reaches to either side

  function inOwnUnits(value, std) { // decimals that show a hundredth of the variable's standard deviation
    if (!Number.isFinite(value)) return "—";
    const decimals = std > 0 ? Math.max(0, 2 - Math.floor(Math.log10(std))) : 99;
    const text = decimals <= 8 && Math.abs(value) < 1e7 ? value.toFixed(decimals) : value.toPrecision(4);
    return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
  }

  function cell(row, kind, text, title = "") {
    const made = document.createElement(kind);
    made.textContent = text; // text, never markup: names come from data
    if (title) made.title = title;
    if (kind === "td") made.className = "number";
    row.append(made);
    return made;
  }

  function place(z) { return Math.min(100, Math.max(-100, (z / SPAN) * 100)); }

  function drawBar(parent, z, z_x) { // the decoded value as a bar from the mean, the original as a tick
    const NS = "http://www.w3.org/2000/svg", svg = document.createElementNS(NS, "svg");
    const add = (name, values) => {
      const made = document.createElementNS(NS, name);
      for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
      svg.append(made);
    };
    for (const [key, value] of Object.entries({ viewBox: "-100 0 200 10", preserveAspectRatio: "none", "aria-hidden": "true" }))
      svg.setAttribute(key, value);
    add("rect", { class: z < 0 ? "below" : "above", x: Math.min(0, place(z)), y: 1, width: Math.abs(place(z)), height: 8 });
    if (z_x !== null) add("rect", { class: "original", x: place(z_x) - 0.75, y: 0, width: 1.5, height: 10 });
    parent.append(svg);
  }

  function show(table, note, model, x, x_hat, level) { // x (D,) or null and x_hat (D,), in the model's units
    const { names, order, centre, scale, mean, std } = model.table;
    table.replaceChildren();
    const head = table.createTHead().insertRow(), body = table.createTBody();
    for (const text of ["variable", "", "decoded", "original", "residual"]) {
      if (!x && (text === "original" || text === "residual")) continue;
      const made = cell(head, "th", text);
      made.scope = "col";
      if (text !== "variable" && text !== "") made.className = "number";
    }
    order.forEach((d, i) => {
      const row = body.insertRow(), name = cell(row, "th", "", names[i]);
      name.scope = "row";
      const span = document.createElement("span");
      span.className = "name";
      span.textContent = names[i];
      name.append(span);
      const own = (u) => centre[i] + scale[i] * u, z = (v) => (std[i] > 0 ? (v - mean[i]) / std[i] : 0);
      const v_hat = own(x_hat[d] + level), v = x ? own(x[d] + level) : null, bar = cell(row, "td", "");
      bar.className = "bar";
      drawBar(bar, z(v_hat), x ? z(v) : null);
      cell(row, "td", inOwnUnits(v_hat, std[i]));
      if (!x) return;
      cell(row, "td", inOwnUnits(v, std[i]));
      cell(row, "td", inOwnUnits(v - v_hat, std[i]));
    });
    const rest = model.D - order.length;
    note.textContent =
      `Values in the variables' own units. Bars: standard deviations from the mean of all rows, at most ${SPAN}; the tick is the original.` +
      (rest > 0 ? ` The ${order.length} most important of ${model.D} variables; ${rest} are left out.` : "");
  }

  return { show };
})();
