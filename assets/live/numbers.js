/* What a plan keeps, costs and is predicted to reach: the server's arithmetic, repeated while a bar is dragged.

   The originals are Slider.kept, WhatIf.cost_terms, Prediction and charts.count; tests hold both sides equal.
   Levels are sparsities in whole per cent, shares lie in [0, 1]. */

/** Round to a whole number; a half goes to the even neighbour, as in Python. */
export function roundHalfEven(value) {
  const floor = Math.floor(value), rest = value - floor;
  if (rest !== 0.5) return floor + (rest > 0.5);
  return floor + (floor % 2);
}

/** How many of `entries` stay at `level`; at least `least` of them do. */
export function kept(entries, level, least) {
  return Math.max(entries - roundHalfEven((level / 100) * entries), least);
}

/** What the network keeps: `terms` are [weights, MACs, [sliders]], `shares` what each slider keeps. */
export function cost(terms, shares) {
  let weights = 0, macs = 0;
  for (const [ownWeights, ownMacs, sliders] of terms) {
    const share = sliders.reduce((product, slider) => product * shares[slider], 1);
    weights += ownWeights * share;
    macs += ownMacs * share;
  }
  return { weights, macs };
}

/** Predicted accuracy at `levels`, with the ends of its band. */
export function predict({ grid, curves, eps, anchor, band }, levels) {
  let change = 0;
  curves.forEach((curve, slider) => {
    const from = anchor.levels[slider], to = levels[slider] / 100;
    if (to !== from) change += along(grid, curve, to) - along(grid, curve, from);
  });
  const middle = link(anchor.value, eps) + change;
  const half = band[0] + band[1] * Math.abs(change);
  const [low, value, high] = [middle - half, middle, middle + half].map((place) => unlink(place, eps));
  return { low, value, high };
}

/** The value at `place` of a curve given at the points of `grid`; beyond its ends the last slope goes on. */
function along(grid, curve, place) {
  let right = 1;
  while (right < grid.length - 1 && grid[right] < place) right += 1;
  const part = (place - grid[right - 1]) / (grid[right] - grid[right - 1]);
  return curve[right - 1] + part * (curve[right] - curve[right - 1]);
}

/** Log-odds of an accuracy, held finite at 0 and 1 by `eps`. */
function link(accuracy, eps) {
  return Math.log((accuracy + eps) / (1 - accuracy + eps));
}

function unlink(place, eps) {
  const odds = Math.exp(-Math.abs(place)); // at most 1: never overflows
  const smaller = ((1 + eps) * odds - eps) / (1 + odds);
  return Math.min(Math.max(place > 0 ? 1 - smaller : smaller, 0), 1);
}

/** Three digits and a unit, whole below 10,000: 269722 -> "270 k". */
export function count(number) {
  for (const [unit, size] of [["k", 1e3], ["M", 1e6], ["G", 1e9], ["T", 1e12]]) {
    const scaled = number / size;
    if (scaled < 999.5 && scaled >= (unit === "k" ? 9.9995 : 0.9995)) {
      return `${fixed(scaled, 3 - String(Math.floor(scaled)).length)} ${unit}`;
    }
  }
  return fixed(number, 0);
}

/** 0.4213 -> "42.1 %". */
export function percent(fraction, digits = 1) {
  return `${fixed(100 * fraction, digits)} %`;
}

const forms = new Map(); // making a format is slow, using one is not

function fixed(number, digits) {
  if (!forms.has(digits)) {
    const options = { minimumFractionDigits: digits, maximumFractionDigits: digits, roundingMode: "halfEven" };
    forms.set(digits, new Intl.NumberFormat("en-US", options));
  }
  return forms.get(digits).format(number);
}
