// A small layer interpreter: packed layers and their bytes in, tensors out. Pure functions, no DOM.
// A tensor is { data, shape } with row-major data and no batch axis; pack.py writes what `load` reads.

/** The numbers of a tensor: (ArrayBuffer, offset, shape) -> array. */
const READERS = {
  float32: (buffer, offset, shape) => new Float32Array(buffer, offset, size(shape)),
  float16: (buffer, offset, shape) => halves(new Uint16Array(buffer, offset, size(shape))),
  uint8: (buffer, offset, shape) => new Uint8Array(buffer, offset, size(shape)),
  // A scale for each output channel, then the levels.
  int8: (buffer, offset, shape) => {
    const scales = new Float32Array(buffer, offset, shape[0]);
    const levels = new Int8Array(buffer, offset + scales.byteLength, size(shape));
    const [numbers, row] = [new Float32Array(levels), levels.length / shape[0]];
    for (let i = 0; i < numbers.length; i++) numbers[i] *= scales[Math.floor(i / row)];
    return numbers;
  },
};

const size = (shape) => shape.reduce((product, n) => product * n, 1);

/** Numbers of half precision, given by their bits: not every browser reads them by itself. */
function halves(numbers) {
  return Float32Array.from(numbers, (bits) => {
    const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, (bits & 1023) / 1024];
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
  });
}

/** The function that packed layers describe: (layers, DataView or Uint8Array) -> (tensor -> tensor). */
export function load(layers, bytes) {
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  const tensor = ({ dtype, offset, shape }) => ({ shape, data: READERS[dtype](buffer, offset, shape) });
  const steps = layers.map(({ op, tensors, ...settings }) => {
    if (!Object.hasOwn(OPS, op)) throw new TypeError(`The interpreter has no layer "${op}".`);
    const read = Object.entries(tensors).map(([name, reference]) => [name, tensor(reference)]);
    const parameters = { ...settings, ...Object.fromEntries(read) };
    return (x) => OPS[op](x, parameters);
  });
  return (x) => steps.reduce((value, step) => step(value), x);
}

/** Equal tensors behind one another: (array type, bytes, shape of one) -> (index -> tensor). */
function slices(Numbers, bytes, shape) {
  const numbers = new Numbers(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  const length = size(shape);
  return (i) => ({ shape, data: numbers.subarray(i * length, (i + 1) * length) });
}

/** x + t delta, clipped to [0, 1]. */
export function along(x, delta, t) {
  return { shape: x.shape, data: Float32Array.from(x.data, (v, i) => clamp(v + t * delta.data[i])) };
}

/** Logits -> probabilities. */
export function softmax({ data, shape }) {
  const top = data.reduce((a, b) => Math.max(a, b));
  const powers = Float64Array.from(data, (v) => Math.exp(v - top));
  const total = powers.reduce((a, b) => a + b);
  return { shape, data: powers.map((p) => p / total) };
}

/** Every layer the interpreter knows: (tensor, parameters) -> tensor. */
export const OPS = {
  bits_per_dim: bitsPerDim,
  conv2d,
  conv_transpose2d: convTranspose2d,
  coupling,
  flatten,
  fonts,
  linear,
  logit,
  mix,
  relu,
  sigmoid,
  softmax,
  squeeze,
  unflatten,
};

const clamp = (v) => Math.min(1, Math.max(0, v));

function relu({ data, shape }) {
  return { shape, data: data.map((v) => (v > 0 ? v : 0)) };
}

function sigmoid({ data, shape }) {
  return { shape, data: Float32Array.from(data, (v) => 1 / (1 + Math.exp(-v))) };
}

function flatten({ data }) {
  return { shape: [data.length], data };
}

function unflatten({ data }, { shape }) {
  return { shape, data };
}

function linear({ data }, { weight, bias }) {
  const [rows, columns] = weight.shape;
  const out = new Float32Array(rows);
  for (let row = 0; row < rows; row++) out[row] = bias.data[row] + dot(weight.data, row * columns, data, columns);
  return { shape: [rows], data: out };
}

/** [C, H, W] -> [O, H', W']: the patch under each output position, times the kernels as a matrix. */
function conv2d({ data, shape }, { weight, bias, stride, padding }) {
  const [, height, width] = shape;
  const [channels, , kernelHeight, kernelWidth] = weight.shape;
  const rows = Math.floor((height + 2 * padding[0] - kernelHeight) / stride[0]) + 1;
  const columns = Math.floor((width + 2 * padding[1] - kernelWidth) / stride[1]) + 1;
  const patch = new Float32Array(weight.data.length / channels);
  const out = new Float32Array(channels * rows * columns);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const top = row * stride[0] - padding[0];
      const left = column * stride[1] - padding[1];
      copyPatch(data, shape, top, left, kernelHeight, kernelWidth, patch);
      for (let channel = 0; channel < channels; channel++) {
        const sum = dot(weight.data, channel * patch.length, patch, patch.length);
        out[(channel * rows + row) * columns + column] = bias.data[channel] + sum;
      }
    }
  }
  return { shape: [channels, rows, columns], data: out };
}

/** Fills `patch` with the window of an image whose upper left corner is (top, left); zero outside. */
function copyPatch(data, [channels, height, width], top, left, kernelHeight, kernelWidth, patch) {
  let k = 0;
  for (let channel = 0; channel < channels; channel++) {
    for (let y = top; y < top + kernelHeight; y++) {
      const start = (channel * height + y) * width;
      for (let x = left; x < left + kernelWidth; x++) {
        patch[k++] = y >= 0 && y < height && x >= 0 && x < width ? data[start + x] : 0;
      }
    }
  }
}

/**
 * [I, H, W] -> [O, H', W']: every input position lays its kernel, weighted by its channels, over the output. The kernels
 * are [O, h, w, I], so that the sum over the channels is an inner product.
 */
function convTranspose2d({ data, shape }, { weight, bias, stride, padding, output_padding: more }) {
  const [inputs, height, width] = shape;
  const [channels, kernelHeight, kernelWidth] = weight.shape;
  const rows = (height - 1) * stride[0] - 2 * padding[0] + kernelHeight + more[0];
  const columns = (width - 1) * stride[1] - 2 * padding[1] + kernelWidth + more[1];
  const places = Array.from({ length: height * width }, (_, i) => Float32Array.from({ length: inputs }, (_, c) => data[c * height * width + i]));
  const out = new Float32Array(channels * rows * columns);
  for (let channel = 0; channel < channels; channel++) {
    out.fill(bias.data[channel], channel * rows * columns, (channel + 1) * rows * columns);
    for (let ky = 0; ky < kernelHeight; ky++) {
      for (let kx = 0; kx < kernelWidth; kx++) {
        const start = ((channel * kernelHeight + ky) * kernelWidth + kx) * inputs;
        for (let y = 0; y < height; y++) {
          const row = y * stride[0] - padding[0] + ky;
          if (row < 0 || row >= rows) continue;
          for (let x = 0; x < width; x++) {
            const column = x * stride[1] - padding[1] + kx;
            if (column < 0 || column >= columns) continue;
            out[(channel * rows + row) * columns + column] += dot(weight.data, start, places[y * width + x], inputs);
          }
        }
      }
    }
  }
  return { shape: [channels, rows, columns], data: out };
}

// The layers of a normalizing flow, advbook.manifolds.flow, each with its inverse. Between them all of the code lies flat,
// what left first standing first: a layer with a `shape` works on the last numbers and leaves those before as they are.
// Beside the numbers goes `logDet`, log |det| of the Jacobian so far.

function onLast({ data, logDet }, shape, layer) {
  const start = data.length - size(shape);
  const made = layer({ shape, data: data.subarray(start) });
  const all = Float32Array.from(data);
  all.set(made.data, start);
  return { shape: [all.length], data: all, logDet: logDet + (made.logDet ?? 0) };
}

/** Image values as logits, or back: then as an image, cut to [0, 1]. */
function logit({ data }, { margin, levels, inverse }) {
  const [width, steps] = [1 - 2 * margin, levels - 1];
  if (inverse) {
    const value = (v) => (((1 / (1 + Math.exp(-v)) - margin) / width) * levels - 0.5) / steps;
    return { shape: [data.length], data: data.map((v) => clamp(value(v))) };
  }
  const shares = Float64Array.from(data, (v) => margin + (width * (v * steps + 0.5)) / levels);
  const slope = (s) => Math.log((width * steps) / levels / (s * (1 - s)));
  const logDet = shares.reduce((sum, s) => sum + slope(s), 0);
  return { shape: [data.length], data: Float32Array.from(shares, (s) => Math.log(s / (1 - s))), logDet };
}

/** [C, H, W] -> [4 C, H / 2, W / 2]: every block of 2 x 2 pixels becomes channels; or back. */
function squeeze(x, { shape, inverse }) {
  const [channels, height, width] = shape;
  return onLast(x, shape, ({ data }) => {
    const out = new Float32Array(data.length);
    for (let from = 0, k = 0; k < 4 * channels; k++) {
      const first = ((k >> 2) * height + ((k >> 1) & 1)) * width + (k & 1);
      for (let y = 0; y < height; y += 2) {
        for (let x = 0; x < width; x += 2, from++) {
          const to = first + y * width + x;
          if (inverse) out[to] = data[from];
          else out[from] = data[to];
        }
      }
    }
    return { data: out };
  });
}

/** An invertible 1 x 1 convolution; `log_det` is that of its matrix. */
function mix(x, { shape, weight, bias, log_det }) {
  const [, height, width] = shape;
  return onLast(x, shape, (part) => ({ ...conv2d(part, { weight, bias, stride: [1, 1], padding: [0, 0] }), logDet: height * width * log_det }));
}

/** The first `kept` channels say how the others are scaled, by at most e^reach, and shifted; or how that is undone. */
function coupling(x, { shape, kept, reach, inverse, ...net }) {
  const [, height, width] = shape;
  const first = kept * height * width;
  const layer = (part, i, edge) =>
    conv2d(part, { weight: net[`weight_${i}`], bias: net[`bias_${i}`], stride: [1, 1], padding: [edge, edge] });
  return onLast(x, shape, ({ data }) => {
    const hidden = relu(layer({ shape: [kept, height, width], data: data.subarray(0, first) }, 1, 1));
    const told = layer(relu(layer(hidden, 2, 0)), 3, 1).data; // all shifts, then what all scales come from
    const moved = data.length - first;
    const out = Float32Array.from(data);
    let logDet = 0;
    for (let i = 0; i < moved; i++) {
      const logScale = reach * Math.tanh(told[moved + i]);
      out[first + i] = inverse ? (data[first + i] - told[i]) * Math.exp(-logScale) : data[first + i] * Math.exp(logScale) + told[i];
      logDet += inverse ? -logScale : logScale;
    }
    return { data: out, logDet };
  });
}

/** A code, with what its image's logDet came to -> bits per dimension of the image. */
function bitsPerDim({ data, logDet }, { levels }) {
  const logNormal = data.reduce((sum, z) => sum - 0.5 * (z * z + Math.log(2 * Math.PI)), 0);
  return { shape: [1], data: [(Math.log(levels - 1) - (logNormal + logDet) / data.length) / Math.LN2] };
}

/** Inner product of `length` numbers of a (from `start`) and b. Four sums at once: a frame takes half the time. */
function dot(a, start, b, length) {
  let s0 = 0, s1 = 0, s2 = 0, s3 = 0, i = 0;
  for (; i + 3 < length; i += 4) {
    s0 += a[start + i] * b[i];
    s1 += a[start + i + 1] * b[i + 1];
    s2 += a[start + i + 2] * b[i + 2];
    s3 += a[start + i + 3] * b[i + 3];
  }
  for (; i < length; i++) s0 += a[start + i] * b[i];
  return s0 + s1 + s2 + s3;
}

/** The decoder of FONTS, advbook.fonts.decode: z = (theta 1..6, font, letter) -> image [1, H, W]. */
function fonts({ data: [shiftX, shiftY, shearX, shearY, scale, rotation, font, letter] }, { prototypes }) {
  const [, letters, height, width] = prototypes.shape;
  const start = (font * letters + letter) * height * width;
  const ink = (row, column) =>
    row >= 0 && row < height && column >= 0 && column < width ? prototypes.data[start + row * width + column] : 0;
  const c = Math.cos(rotation);
  const n = Math.sin(rotation);
  const out = new Float32Array(height * width);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const x = (2 * column) / (width - 1) - 1;
      const y = (2 * row) / (height - 1) - 1;
      const u = scale * ((c + n * shearX) * x + (c * shearX - n) * y) + shiftX;
      const v = scale * ((n + c * shearY) * x + (c - n * shearY) * y) + shiftY;
      out[row * width + column] = clamp(bilinear(ink, ((v + 1) * (height - 1)) / 2, ((u + 1) * (width - 1)) / 2) / 255);
    }
  }
  return { shape: [1, height, width], data: out };
}

function bilinear(value, row, column) {
  const top = Math.floor(row);
  const left = Math.floor(column);
  const down = row - top;
  const right = column - left;
  return (
    (1 - down) * ((1 - right) * value(top, left) + right * value(top, left + 1)) +
    down * ((1 - right) * value(top + 1, left) + right * value(top + 1, left + 1))
  );
}
