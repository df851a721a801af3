// Runs a figure's own JS on inputs: node parity.mjs MODULE < jobs.json > outputs.json
// A job is { layers, weights (base64), shape, inputs }, { x, delta, shape, ts } or, through a decoder, { layers, weights,
// theta, zetas, box, example }; its outcome is a list of { shape, data }.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { along, code, load } = await import(pathToFileURL(process.argv[2]));

function outcome({ layers, weights, shape, inputs, x, delta, ts, theta, zetas, box, example }) {
  if (ts) return ts.map((t) => along({ shape, data: x }, { shape, data: delta }, t));
  const net = load(layers, Buffer.from(weights, "base64"));
  if (zetas) return zetas.map((zeta) => net(code(theta, zeta, box, example)));
  return inputs.map((data) => net({ shape, data: Float32Array.from(data) }));
}

const plain = ({ shape, data }) => ({ shape, data: Array.from(data) });
const jobs = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(jobs.map((job) => outcome(job).map(plain))));
