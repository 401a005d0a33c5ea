// The decoder network of a model: unit * network(k, b), with the layers of llgae_cli/models/networks.py.
"use strict";

const network = (() => {
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const floats = (text) => new Float32Array(bytes(text).buffer);

  function integers({ values, scale, bits, width }) { // a stream of signed integers, lowest bit first -> float32 rows
    const stream = bytes(values), scales = floats(scale), rows = new Float32Array(scales.length * width);
    const half = 2 ** (bits - 1), mask = 2 * half - 1;
    for (let i = 0, at = 0, held = 0, bitsHeld = 0; i < rows.length; i++) {
      for (; bitsHeld < bits; bitsHeld += 8) held |= stream[at++] << bitsHeld;
      const value = held & mask;
      rows[i] = (value < half ? value : value - 2 * half) * scales[Math.floor(i / width)];
      held >>>= bits;
      bitsHeld -= bits;
    }
    return rows;
  }

  function unpack(packed) { // in place
    packed.k = floats(packed.k);
    for (const layer of Object.values(packed.layers)) {
      layer.bias = floats(layer.bias);
      layer.weight = integers(layer);
    }
  }

  function silu(values) {
    return values.map((value) => value / (1 + Math.exp(-value)));
  }

  function dense({ weight, bias }, v, out = new Float32Array(bias.length), at = 0) { // bias + weight v, from out[at] on
    const n = v.length;
    for (let o = 0, w = 0; o < bias.length; o++) {
      let sum = bias[o];
      for (let i = 0; i < n; i++) sum += weight[w++] * v[i];
      out[at + o] = sum;
    }
    return out;
  }

  // Images are { height, width, values }, values by row, column and channel.
  function convolve(layer, { height, width, values }, reach = 1) { // with zeros around; reach 0: 1 x 1
    const inputs = values.length / (height * width), outputs = layer.bias.length;
    const out = new Float32Array(height * width * outputs), patch = new Float32Array((2 * reach + 1) ** 2 * inputs);
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        patch.fill(0);
        for (let v = -reach, at = 0; v <= reach; v++)
          for (let u = -reach; u <= reach; u++, at += inputs) {
            if (y + v < 0 || y + v >= height || x + u < 0 || x + u >= width) continue;
            const from = ((y + v) * width + x + u) * inputs;
            patch.set(values.subarray(from, from + inputs), at);
          }
        dense(layer, patch, out, (y * width + x) * outputs);
      }
    return { height, width, values: out };
  }

  function block(layers, name, h, z) { // h + conv(silu((1 + scale) conv(silu(h)) + shift))
    const modulation = dense(layers[`${name}.modulation`], z), channels = modulation.length / 2;
    const g = convolve(layers[`${name}.first`], { ...h, values: silu(h.values) });
    g.values = silu(g.values.map((value, i) => value * (1 + modulation[i % channels]) + modulation[channels + (i % channels)]));
    const added = convolve(layers[`${name}.second`], g);
    return { ...h, values: h.values.map((value, i) => value + added.values[i]) };
  }

  function shuffle({ height, width, values }) { // channels c, dy, dx -> twice the height and width
    const channels = values.length / (height * width * 4), out = new Float32Array(values.length);
    for (let i = 0; i < values.length; i++) {
      const part = i % (4 * channels), place = Math.floor(i / (4 * channels)), c = part >> 2;
      const y = 2 * Math.floor(place / width) + ((part >> 1) & 1), x = 2 * (place % width) + (part & 1);
      out[(y * 2 * width + x) * channels + c] = values[i];
    }
    return { height: 2 * height, width: 2 * width, values: out };
  }

  function convDecoder(layers, z, [rows, columns]) {
    let h = { height: Math.ceil(rows / 4), width: Math.ceil(columns / 4), values: dense(layers.spread, z) };
    for (let i = 0; layers[`coarse.${i}.first`]; i++) h = block(layers, `coarse.${i}`, h, z);
    h = block(layers, "fine", shuffle(convolve(layers.up, h, 0)), z);
    h = shuffle(convolve(layers.out, { ...h, values: silu(h.values) }));
    const colours = h.values.length / (h.height * h.width), kept = new Float32Array(rows * columns * colours);
    for (let y = 0; y < rows; y++) // the grid is rounded up where a side is not a multiple of four
      kept.set(h.values.subarray(y * h.width * colours, (y * h.width + columns) * colours), y * columns * colours);
    return kept;
  }

  // Values (D,) of the component at place `at` of the page's list, for b (E,) and samples of a shape.
  function decode({ layers, k, unit }, at, b, shape) {
    const width = layers.first.bias.length;
    const h = dense(layers.first, b).map((value, i) => value + k[at * width + i]);
    const z = silu(dense(layers.second, silu(h)));
    const values = layers.spread ? convDecoder(layers, z, shape) : dense(layers.out, z);
    return values.map((value) => value * unit);
  }

  return { unpack, decode };
})();
