// The explorer: x_hat = mu_k + W_k b + network(k, b) in the browser, on the numbers that the page brings along. Follows
// variables.js and network.js.

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const REACH = 4; // standard deviations a slider goes to either side
  const MAX_SLIDERS = 40;
  const OFF = -13, LARGEST = 12; // places of the step's slider: not rounded; else the model's own step times 2^(place/4)

  // ---- numbers out of base64 -------------------------------------------------------------------------------------
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const floats = (text) => new Float32Array(bytes(text));

  function rows({ values, scale }, width) { // int16 and a scale a row -> float32 rows
    const whole = new Int16Array(bytes(values)), scales = floats(scale);
    return Float32Array.from(whole, (value, i) => value * scales[Math.floor(i / width)]);
  }

  for (const set of Object.values(data.images)) {
    set.values = set.type === "uint8" ? new Uint8Array(bytes(set.values)) : floats(set.values);
    set.means = floats(set.means);
  }
  for (const model of data.checkpoints) {
    model.mu = rows(model.mu, model.D); // (Kc, D)
    model.W = rows(model.W, model.D); // (Kc, E, D)
    for (const name of ["mean", "B", "inverse"]) model[name] = floats(model[name]);
    if (model.network) network.unpack(model.network);
    if (model.codec) for (const name of ["A", "back", "a", "bits_k"]) model.codec[name] = floats(model.codec[name]);
    for (const best of model.codes) for (const code of best) code.b = floats(code.b);
  }

  // ---- the model -------------------------------------------------------------------------------------------------
  function decode(model, at, b) { // mu_k + W_k b + network(k, b), of the component at place `at` of the page's list
    const { D } = model, x = Float64Array.from(model.mu.subarray(at * D, (at + 1) * D)), E = model.W.length ? model.E : 0;
    if (model.network) network.decode(model.network, at, b, model.shape).forEach((value, d) => { x[d] += value; });
    for (let e = 0; e < E; e++) {
      const w = model.W.subarray((at * E + e) * D, (at * E + e + 1) * D), be = b[e];
      for (let d = 0; d < D; d++) x[d] += be * w[d];
    }
    return x;
  }

  function climb(model, at, x, steps) { // b(0) = 0 ... b(steps), as the source's recursion has them
    const { D, E } = model, all = [new Float64Array(E)];
    for (let t = 1; t <= steps; t++) {
      const b = all[t - 1], x_hat = decode(model, at, b), next = new Float64Array(E);
      for (let e = 0; e < E; e++) {
        const w = model.W.subarray((at * E + e) * D, (at * E + e + 1) * D);
        let uphill = -model.alpha * b[e];
        for (let d = 0; d < D; d++) uphill += w[d] * (x[d] - x_hat[d]);
        next[e] = b[e] + model.beta * uphill;
      }
      all.push(next);
    }
    return all;
  }

  function coordinates(model, at, b) { // b in standard deviations along the component's principal axes
    const { E } = model, a = new Float64Array(E);
    for (let j = 0; j < E; j++)
      for (let e = 0; e < E; e++) a[j] += model.inverse[(at * E + j) * E + e] * (b[e] - model.mean[at * E + e]);
    return a;
  }

  // ---- the codec: latents rounded to multiples of a step, and about how many bits they take -----------------------
  const SHAPES = [0.5, 1, 1.5, 2]; // exponents s of the densities exp(-|z / alpha|^s)
  const GAMMA = [2, 1, 0.9027452929509336, 0.886226925452758]; // Gamma(1 + 1/s): a density's integral is 2 alpha Gamma
  const FINEST = 16; // points that a cell is integrated over, a multiple of alpha
  const SKIPPED = 2 ** -12; // a latent that is nonzero more rarely is always zero and free
  const WIDEST = 1000; // step / alpha, above which no latent of any shape is coded
  const LEAST = 2 ** -30; // about the probability of what lies outside the tables
  const TRADE_OFF = 0.08; // lambda / step^2: a value nearer to zero is used where it costs less

  function cellProbability(q, ratio, shape) { // of [q - 1/2, q + 1/2] step, for ratio = step / alpha
    const n = Math.min(4096, Math.max(8, Math.ceil(FINEST * ratio))), low = q === 0 ? 0 : Math.abs(q) - 0.5;
    const width = (q === 0 ? 0.5 : 1) / n;
    let sum = 0;
    for (let i = 0; i < n; i++) sum += Math.exp(-Math.pow((low + (i + 0.5) * width) * ratio, SHAPES[shape]));
    return (sum * width * ratio * (q === 0 ? 2 : 1)) / (2 * GAMMA[shape]);
  }

  function roundLatent(z, step, alpha, shape) { // [q step, bits]
    const ratio = step / alpha;
    if (ratio > WIDEST || 1 - cellProbability(0, ratio, shape) < SKIPPED) return [0, 0];
    const bits = (q) => -Math.log2(Math.max(LEAST, cellProbability(q, ratio, shape)));
    const near = Math.round(z / step), lower = near - Math.sign(near);
    const cost = (q) => (z - q * step) ** 2 + TRADE_OFF * step * step * bits(q);
    const q = cost(lower) < cost(near) ? lower : near;
    return [q * step, bits(q)];
  }

  function round(model, at, b, level, step) { // the code that a file of this step holds: b, mean grey level and bits
    const { A, back, a, bits_k, scale, per_octave, shape, F } = model.codec;
    const c = [...b, ...(model.centred ? [level] : [])], C = c.length, rounded = new Float64Array(C);
    let bits = bits_k[at];
    for (let f = 0; f < F; f++) {
      const place = at * F + f;
      let z = a[place];
      for (let e = 0; e < C; e++) z += A[place * C + e] * c[e];
      const [value, cost] = roundLatent(z, step, 2 ** (scale[place] / per_octave), shape[place]);
      bits += cost;
      for (let e = 0; e < C; e++) rounded[e] += back[(at * C + e) * F + f] * (value - a[place]);
    }
    return { b: rounded.subarray(0, model.E), level: model.centred ? rounded[model.E] : level, bits };
  }

  const centre = (model, at) => Float64Array.from(model.mean.subarray(at * model.E, (at + 1) * model.E));

  function sample(model, i) { // x = v - mean, (D,)
    const set = data.images[model.images], { D } = model;
    return Float64Array.from(set.values.subarray(i * D, (i + 1) * D), (v) => v - set.means[i]);
  }

  function meanL2(x, x_hat) {
    let sum = 0;
    for (let d = 0; d < x.length; d++) sum += (x[d] - x_hat[d]) ** 2;
    return sum / x.length;
  }

  // ---- drawing ---------------------------------------------------------------------------------------------------
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const PAPER = { light: [246, 247, 248], dark: [32, 37, 42] };
  const RAMPS = { // the figures' colours for residuals: below, none, above
    light: [[33, 102, 172], [125, 177, 216], PAPER.light, [239, 154, 128], [178, 24, 43]],
    dark: [[168, 211, 245], [61, 127, 184], PAPER.dark, [196, 88, 63], [255, 184, 163]],
  };
  const theme = () => (dark.matches ? "dark" : "light");

  function grey(model, value) { // 0 at the data's black, 255 at its white, clipped
    return Math.min(255, Math.max(0, Math.round((value - model.low) * 255 / (model.high - model.low || 1))));
  }

  function residualColour(model, value) {
    const ramp = RAMPS[theme()], limit = (model.high - model.low) / 2 || 1;
    const place = Math.min(4, Math.max(0, (value / limit) * 2 + 2)), low = Math.min(3, Math.floor(place));
    return ramp[low].map((c, i) => Math.round(c + (ramp[low + 1][i] - c) * (place - low)));
  }

  function draw(canvas, model, values, level, residual = false) {
    canvas.hidden = !model.image; // rows of a table are shown as numbers
    if (!model.image) return;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const [height, width, channels = 1] = model.shape;
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    const image = context.createImageData(width, height);
    for (let p = 0; p < width * height; p++) {
      let colour;
      if (!values) colour = PAPER[theme()];
      else if (channels === 1) colour = residual ? residualColour(model, values[p]) : Array(3).fill(grey(model, values[p] + level));
      else colour = [0, 1, 2].map((c) => grey(model, values[p * 3 + c] + (residual ? (model.low + model.high) / 2 : level)));
      image.data.set([...colour, 255], p * 4);
    }
    context.putImageData(image, 0, 0);
  }

  // ---- state and what follows from it ----------------------------------------------------------------------------
  const state = { model: data.checkpoints[0], at: 0, b: null, level: 0, image: null, path: null, t: null, x: null, step: OFF };
  let climbing = 0;

  const number = (value) => (Math.abs(value) >= 100 ? value.toFixed(1) : Math.abs(value) >= 0.1 || value === 0 ? value.toFixed(2) : value.toPrecision(3));
  const percent = (value) => (value * 100).toFixed(value < 0.1 ? 1 : 0) + "%";
  const pressed = (parent, chosen) => [...parent.children].forEach((button, i) => button.setAttribute("aria-pressed", i === chosen));
  const called = (set, i) => {
    const noun = state.model.table ? "row" : "sample";
    return set.names[i] ? `${set.names[i]}, test ${noun} ${set.rows[i]}` : `Test ${noun} ${set.rows[i]}`;
  };
  const component = () => state.model.components[state.at];

  function button(parent, label, action) {
    const made = document.createElement("button"), canvas = document.createElement("canvas");
    made.type = "button";
    made.setAttribute("aria-label", label);
    made.addEventListener("click", action);
    canvas.setAttribute("aria-hidden", "true");
    made.append(canvas);
    parent.append(made);
    return [made, canvas];
  }

  function caption(parent, text) {
    const span = document.createElement("span");
    span.textContent = text; // text, never markup: names come from data
    parent.append(span);
  }

  function useModel(model) {
    const kept = state.image !== null && state.model.images === model.images ? state.image : null;
    state.model = model;
    const set = data.images[model.images];
    $("images").replaceChildren();
    set.rows.forEach((_, i) => {
      const [made, canvas] = button($("images"), called(set, i), () => useImage(i));
      if (model.table) caption(made, set.names[i] ? `${set.rows[i]} · ${set.names[i]}` : String(set.rows[i]));
      draw(canvas, model, sample(model, i), set.means[i]);
    });
    $("components").replaceChildren();
    model.components.forEach((one, at) => {
      const [made, canvas] = button($("components"), `Component ${one.k}, ${percent(one.use)} of the samples`, () => useComponent(at));
      draw(canvas, model, decode(model, at, centre(model, at)), model.centred ? one.level : 0);
      caption(made, model.table ? `${one.k} · ${percent(one.use)}` : String(one.k));
    });
    const less = model.components.length < model.K;
    $("components-note").textContent = less ? `The ${model.components.length} most used of ${model.K} components; the others would make the page too large.` : "";
    for (const name of ["images", "components", "runners", "others"]) $(name).classList.toggle("chips", Boolean(model.table));
    $("panels").hidden = Boolean(model.table);
    $("variables-part").hidden = !model.table;
    const level = $("level"), span = model.high - model.low;
    [level.min, level.max] = model.image ? [model.low, model.high] : [-span, span];
    $("step-control").hidden = $("step-note").hidden = !model.codec;
    Object.assign($("step"), { min: OFF, max: LARGEST });
    $("level-control").hidden = $("level-note").hidden = !model.centred;
    $("steps-part").hidden = !model.can_infer;
    $("network-note").hidden = !model.network;
    buildSliders();
    $("t").max = model.steps;
    if (kept === null) useComponent(0); else useImage(kept);
  }

  function buildSliders() {
    const { E } = state.model, shown = Math.min(E, MAX_SLIDERS);
    $("sliders").replaceChildren();
    for (let j = 0; j < shown; j++) {
      const row = document.createElement("div"), label = document.createElement("label");
      const input = document.createElement("input"), output = document.createElement("output"), share = document.createElement("span");
      row.className = "slider";
      label.textContent = String(j + 1);
      label.htmlFor = input.id = `b-${j}`;
      Object.assign(input, { type: "range", min: -REACH, max: REACH, step: 0.05 });
      input.addEventListener("input", () => slide(j, Number(input.value)));
      output.htmlFor = input.id;
      share.className = "share";
      row.append(label, input, output, share);
      $("sliders").append(row);
    }
    $("reset").hidden = E === 0;
    $("sliders-note").textContent = E === 0
      ? "E = 0: a component is a point and has no axes."
      : "In standard deviations of the component's own samples; at the right the share of its variance." + (shown < E ? ` The leading ${shown} of ${E} are shown.` : "");
  }

  function useComponent(at) {
    stopClimbing();
    Object.assign(state, { at, b: centre(state.model, at), image: null, path: null, t: null, x: null });
    state.level = state.model.centred ? component().level : 0;
    refresh();
  }

  function useImage(i) {
    stopClimbing();
    const best = state.model.codes[i], set = data.images[state.model.images];
    Object.assign(state, { image: i, x: sample(state.model, i), level: set.means[i] });
    takeCode(best[0]);
    showRunners();
  }

  function takeCode(code) { // a code of the chosen image, in whichever component
    state.at = code.at;
    state.b = Float64Array.from(code.b);
    state.path = state.model.can_infer ? climb(state.model, code.at, state.x, state.model.steps) : null;
    state.t = state.model.inference === "least-squares" || !state.path ? null : state.model.steps;
    refresh();
  }

  function slide(j, value) { // only this axis moves: the values along the others stay exactly
    stopClimbing();
    const { model, at } = state, { E } = model, change = value - coordinates(model, at, state.b)[j];
    for (let e = 0; e < E; e++) state.b[e] += model.B[(at * E + e) * E + j] * change;
    state.t = null;
    refresh(j);
  }

  function stepTo(t) {
    state.t = t;
    state.b = Float64Array.from(state.path[t]);
    refresh();
  }

  function stopClimbing() { clearInterval(climbing); }

  function startClimbing() {
    stopClimbing();
    stepTo(0);
    const pause = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : Math.max(60, 3000 / state.model.steps);
    climbing = setInterval(() => (state.t === null || state.t >= state.model.steps ? stopClimbing() : stepTo(state.t + 1)), pause);
  }

  // ---- showing it ------------------------------------------------------------------------------------------------
  function refresh(moved = -1) {
    const { model, at, b, x, image } = state, step = currentStep();
    const shown = step === null ? { b, level: state.level } : round(model, at, b, state.level, step);
    const x_hat = decode(model, at, shown.b), shift = shown.level - state.level;
    if (model.table) variables.show($("variables"), $("variables-note"), model, x, x_hat, shown.level);
    draw($("x-hat"), model, x_hat, shown.level);
    if (shift) x_hat.forEach((value, d) => { x_hat[d] = value + shift; }); // the error of the mean is in the residual
    draw($("x"), model, x, state.level);
    draw($("residual"), model, x && x.map((value, d) => value - x_hat[d]), 0, true);
    showStep(step);
    const set = data.images[model.images], name = image === null ? "" : called(set, image);
    $("x").setAttribute("aria-label", x ? `Original: ${name}` : `No ${model.words.one} is chosen`);
    $("x-hat").setAttribute("aria-label", `Decoded by component ${component().k}`);
    $("residual").setAttribute("aria-label", x ? `Residual, mean L2 ${number(meanL2(x, x_hat))}` : `No residual without a ${model.words.one}`);
    const where = `Component ${component().k}, ${percent(component().use)} of the samples.`;
    const size = step === null ? "" : ` About ${shown.bits.toFixed(shown.bits < 10 ? 1 : 0)} bits at step ${number(step)}.`;
    $("said").textContent = x
      ? `${name}. ${where} Mean L2 ${number(meanL2(x, x_hat))} ${model.words.unit}.${size}`
      : `${where} Choose a ${model.words.one} to see a residual.${size}`;
    $("level").value = state.level;
    $("level-value").textContent = number(state.level);
    const a = coordinates(model, at, b);
    [...$("sliders").children].forEach((row, j) => {
      const [, input, output, share] = row.children;
      if (j !== moved) input.value = Math.min(REACH, Math.max(-REACH, a[j]));
      output.textContent = `${a[j] < -0.005 ? "−" : a[j] > 0.005 ? "+" : ""}${Math.abs(a[j]).toFixed(2)} sd`;
      share.textContent = percent(component().share[j]);
      input.setAttribute("aria-valuetext", `${a[j].toFixed(2)} standard deviations`);
      input.setAttribute("aria-label", `Axis ${j + 1}, ${share.textContent} of the variance`);
    });
    pressed($("components"), at);
    pressed($("images"), image);
    $("inference").hidden = image === null;
    if (state.path) showSteps();
  }

  const currentStep = () => (state.model.codec && state.step !== OFF ? state.model.codec.step * 2 ** (state.step / 4) : null);

  function showStep(step) {
    $("step").value = state.step;
    $("step-value").textContent = step === null ? "off" : number(step);
    $("step").setAttribute("aria-valuetext", step === null ? "not rounded" : `${number(step)}${state.step ? "" : ", the model's own"}`);
  }

  function showSteps() {
    const { model, at, x, path, t } = state, last = model.steps;
    $("t").value = t ?? last;
    $("t-value").textContent = t === null ? "—" : `${t} of ${last}`;
    const losses = path.map((b) => meanL2(x, decode(model, at, b)));
    const every = Math.max(1, Math.ceil(last / 12)), items = [];
    losses.forEach((loss, i) => {
      if (i % every && i !== last && i !== t) return;
      const item = document.createElement("li");
      item.textContent = `t = ${i}: ${Number.isFinite(loss) ? number(loss) : "diverged"}`;
      if (i === t) item.setAttribute("aria-current", "step");
      items.push(item);
    });
    $("steps").replaceChildren(...items);
    const arrived = losses.length > 2 && losses[1] - losses[last] <= 1e-3 * (losses[0] - losses[last] + 1e-12);
    $("inference-note").textContent =
      model.inference === "least-squares" ? "This checkpoint infers by least squares, where the climb ends after very many steps."
      : arrived ? "With this checkpoint's W the first step is exact." : "";
  }

  function showRunners() {
    const { model, image } = state, set = data.images[model.images];
    $("runners").replaceChildren();
    model.codes[image].forEach((code, place) => {
      const k = model.components[code.at].k, text = `${place ? "" : "Assigned: "}component ${k}, mean L2 ${number(code.mean_l2)}`;
      const [made, canvas] = button($("runners"), text, () => { stopClimbing(); takeCode(code); });
      draw(canvas, model, decode(model, code.at, code.b), set.means[image]);
      caption(made, text);
    });
    const alike = data.checkpoints.filter((other) => other.images === model.images);
    $("others-part").hidden = alike.length < 2;
    $("others").replaceChildren();
    for (const other of alike.length < 2 ? [] : alike) {
      const code = other.codes[image][0], text = `${other.name}: mean L2 ${number(code.mean_l2)}`;
      const [made, canvas] = button($("others"), text, () => { $("checkpoint").value = data.checkpoints.indexOf(other); useModel(other); });
      draw(canvas, other, decode(other, code.at, code.b), set.means[image]);
      caption(made, text);
    }
  }

  // ---- start -----------------------------------------------------------------------------------------------------
  data.checkpoints.forEach((model, i) => $("checkpoint").add(new Option(model.name, i)));
  $("choose-checkpoint").hidden = data.checkpoints.length < 2;
  $("checkpoint").addEventListener("change", () => useModel(data.checkpoints[Number($("checkpoint").value)]));
  $("reset").addEventListener("click", () => { stopClimbing(); state.b = centre(state.model, state.at); state.t = null; refresh(); });
  $("level").addEventListener("input", () => { state.level = Number($("level").value); refresh(); });
  $("step").addEventListener("input", () => { state.step = Number($("step").value); refresh(); });
  $("t").addEventListener("input", () => { stopClimbing(); stepTo(Number($("t").value)); });
  $("climb").addEventListener("click", startClimbing);
  dark.addEventListener("change", () => { const i = state.image; useModel(state.model); if (i !== null) useImage(i); });
  $("explorer-controls").hidden = false;
  useModel(data.checkpoints[0]);
  useImage(0);
})();
