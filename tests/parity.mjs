// Runs a figure's own JS on inputs: node parity.mjs MODULE < jobs.json > outputs.json
// A job is { layers, weights (base64), shape, inputs }, { x, delta, shape, ts }, { confidences, taus } or, through a
// decoder, { layers, weights, theta, zetas, box, example } or, along directions, { classes, shape, label, zetas }; its outcome is a list of { shape, data }.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { along, code, load, principal, rates, reader } = await import(pathToFileURL(process.argv[2]));

function outcome({ layers, weights, shape, inputs, x, delta, ts, theta, zetas, box, example, confidences, taus, classes, label }) {
  if (taus) return taus.map((tau) => listed(rates(confidences, tau)));
  if (ts) return ts.map((t) => along({ shape, data: x }, { shape, data: delta }, t));
  if (classes) {
    const bytes = ["means", "directions", "steps"].map((name) => new Uint8Array(Buffer.from(classes[name], "base64")));
    return zetas.map((zeta) => principal(reader(shape, ...bytes)(label), zeta).image);
  }
  const net = load(layers, Buffer.from(weights, "base64"));
  if (zetas) return zetas.map((zeta) => net(code(theta, zeta, box, example)));
  return inputs.map((data) => net({ shape, data: Float32Array.from(data) }));
}

// A share that is 0/0 is told as -1: JSON has no NaN.
const listed = (shares) => ({ shape: [Object.keys(shares).length], data: Object.values(shares).map((v) => v ?? -1) });
const plain = ({ shape, data }) => ({ shape, data: Array.from(data) });
const jobs = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(jobs.map((job) => outcome(job).map(plain))));
