// The table of a sweep: sorts by a column, filters by words; the points of its plot show their cell and open it.
"use strict";

(() => {
  const $ = (id) => document.getElementById(id);
  const body = $("cells"), rows = body ? [...body.rows] : [];
  if (!body) return;

  // ---- sorting: numbers by value, else text; cells without a value last ------------------------------------------
  const heads = [...document.querySelectorAll("#board th[data-sort]")];
  function key(row, column) {
    const cell = row.cells[column], value = cell.dataset.value ?? cell.textContent.trim();
    return value === "" || value === "—" || value === "failed" ? null : isNaN(value) ? value : Number(value);
  }
  function compare(a, b) {
    if (a === null || b === null) return (a === null) - (b === null);
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
  }
  heads.forEach((head) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending", column = head.cellIndex;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = rows.map((row) => [key(row, column), row]);
    order.sort(([a], [b]) => (a === null || b === null || !down ? compare(a, b) : compare(b, a)));
    body.replaceChildren(...order.map(([, row]) => row));
  }));

  // ---- filtering: every word has to be in the row; K=11, K>5, K<=20 compare a column -----------------------------
  const names = new Map(heads.map((head) => [head.dataset.sort.toLowerCase(), head.cellIndex]));
  function fits(row, word) {
    const found = word.match(/^(.+?)(<=|>=|=|<|>)(.+)$/), column = found && names.get(found[1].replaceAll("_", "-"));
    if (!found || column === undefined) return row.textContent.toLowerCase().includes(word);
    const value = key(row, column), bound = isNaN(found[3]) ? found[3] : Number(found[3]);
    if (value === null) return false;
    if (found[2] === "=") return String(value).toLowerCase() === String(bound);
    const sign = compare(value, bound);
    return found[2][0] === "<" ? sign < 0 || (found[2] === "<=" && sign === 0) : sign > 0 || (found[2] === ">=" && sign === 0);
  }
  function filter() {
    const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean), front = $("front-only");
    const only = Boolean(front && front.checked);
    let shown = 0;
    for (const row of rows) {
      row.hidden = !words.every((word) => fits(row, word)) || (only && row.dataset.front !== "yes");
      shown += row.hidden ? 0 : 1;
      const point = $(`point-${row.dataset.row}`);
      if (point) point.toggleAttribute("data-out", row.hidden);
    }
    $("shown").textContent = shown === rows.length ? `${shown} cells` : `${shown} of ${rows.length} cells`;
  }
  $("filter").addEventListener("input", filter);
  if ($("front-only")) $("front-only").addEventListener("change", filter);
  $("board-controls").hidden = false;
  filter();

  // ---- the plot --------------------------------------------------------------------------------------------------
  // Tab enters and leaves it; within it the arrows move to the next shown point on that side, Home and End to the ends.
  const points = [...document.querySelectorAll("#front-plot .cell")], note = $("cell-shown"), quiet = note && note.textContent;
  function show(point) {
    points.forEach((other) => other.classList.toggle("chosen", other === point));
    rows.forEach((row) => row.classList.toggle("chosen", Boolean(point) && row.dataset.row === point.dataset.row));
    note.textContent = point ? point.getAttribute("aria-label") : quiet;
  }
  function open(point) {
    const at = point.dataset.checkpoint;
    if (at !== undefined && document.getElementById("checkpoint")) {
      const select = $("checkpoint");
      select.value = at;
      select.dispatchEvent(new Event("change"));
      $("explorer").scrollIntoView();
      const next = select.offsetParent ? select : $("images").querySelector("button"); // hidden for a single checkpoint
      next.focus({ preventScroll: true });
    } else {
      const row = rows.find((one) => one.dataset.row === point.dataset.row);
      if (row && row.hidden) { $("filter").value = ""; if ($("front-only")) $("front-only").checked = false; filter(); }
      if (row) { row.scrollIntoView({ block: "center" }); show(point); }
    }
  }
  const places = new Map(points.map((point) => {
    const dot = point.querySelector("circle");
    return [point, { across: Number(dot.getAttribute("cx")), down: Number(dot.getAttribute("cy")) }];
  }));
  const STEPS = { ArrowRight: ["across", 1], ArrowLeft: ["across", -1], ArrowDown: ["down", 1], ArrowUp: ["down", -1] };
  const enter = (point) => points.forEach((other) => other.setAttribute("tabindex", other === point ? 0 : -1));
  function next(point, pressed) {
    const ends = { Home: 0, End: -1 }, [side, step] = STEPS[pressed] || ["across", 1];
    const order = points.filter((one) => one === point || !one.hasAttribute("data-out"));
    order.sort((a, b) => places.get(a)[side] - places.get(b)[side]); // equal ones in the order of the board
    return pressed in ends ? order.at(ends[pressed]) : STEPS[pressed] && order[order.indexOf(point) + step];
  }
  if (points.length) enter(points.reduce((a, b) => (places.get(b).across < places.get(a).across ? b : a)));
  points.forEach((point) => {
    point.addEventListener("focus", () => enter(point));
    for (const event of ["pointerenter", "focus"]) point.addEventListener(event, () => show(point));
    point.addEventListener("pointerleave", () => show(points.find((one) => one === document.activeElement)));
    point.addEventListener("blur", () => show(undefined));
    point.addEventListener("click", (event) => { event.preventDefault(); open(point); });
    point.addEventListener("keydown", (event) => {
      const reached = next(point, event.key);
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(point); }
      if (event.key in STEPS || reached) event.preventDefault(); // at an end the page must not scroll away
      if (reached) reached.focus();
    });
  });
  document.querySelectorAll("#cells button[data-checkpoint]").forEach((one) => one.addEventListener("click", () => open(one)));
})();
