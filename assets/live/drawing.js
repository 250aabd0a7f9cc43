/* How the bars and the numbers beside them are drawn. `numbers.js` stands above this file, in the same module. */

class Drawing {
  constructor(root) {
    this.root = root;
    this.columns = [];
    this.find = (selector) => root.querySelector(selector);
    this.find(".live").classList.add("ready");
  }

  bar(slider) {
    return this.columns[slider].querySelector(".bar");
  }

  sliderOf(event) {
    return this.columns.indexOf(event.target.closest(".column"));
  }

  /** A column for each slider. */
  build({ sliders }) {
    this.columns = sliders.map(({ name, layers }, slider) => {
      const column = this.find("template").content.firstElementChild.cloneNode(true);
      const shared = layers.length > 1 ? `, shared by ${layers.length} layers` : "";
      column.title = `${slider + 1} · ${name}${shared}`;
      column.querySelector(".bar").setAttribute("aria-label", `${slider + 1} ${name}${shared}`);
      column.querySelector(".foot").textContent = slider + 1;
      return column;
    });
    this.find(".strip").replaceChildren(...this.columns);
  }

  /** Bars as wide as their sliders' share of the weights or MACs. */
  share({ sliders, by }) {
    this.columns.forEach(({ style }, slider) => {
      const { weights, macs } = sliders[slider];
      style.setProperty("--share", Math.max(by === "MACs" ? macs : weights, 1));
    });
    this.find(".strip").style.setProperty("--count", sliders.length);
    say(this.find(".widths"), `width: share of ${by}, never too narrow to grab`);
  }

  /** Scroll the strip, and nothing else, until the column is seen. */
  reveal(slider) {
    const strip = this.find(".strip").getBoundingClientRect();
    const { left, right } = this.columns[slider].getBoundingClientRect();
    this.find(".strip").scrollLeft += Math.min(left - strip.left, 0) + Math.max(right - strip.right, 0);
  }

  paint(now) {
    const { sliders, least, unit } = now.data;
    const stay = sliders.map(({ entries }, slider) => kept(entries, now.levels[slider], least));
    now.shares = stay.map((number, slider) => number / sliders[slider].entries);
    now.words = stay.map((number, slider) => `keeps ${count(number)} of ${count(sliders[slider].entries)} ${unit}`);
    const strip = this.find(".strip"), widths = this.columns.map((column) => column.offsetWidth); // read before writing
    strip.classList.toggle("wide", strip.scrollWidth > strip.clientWidth);
    this.columns.forEach(({ classList }, slider) => classList.toggle("narrow", widths[slider] < NARROW));
    this.find(".live").classList.toggle("holding", Boolean(now.held));
    this.columns.forEach((column, slider) => this.paintColumn(column, slider, now));
    this.paintChosen(now);
    this.paintCosts(now);
    this.paintAccuracy(now);
  }

  paintColumn(column, slider, { levels, locked, shares, words, chosen, held }) {
    const states = { cut: shares[slider] < 1, chosen: slider === chosen, held: slider === held?.slider, locked: locked[slider] };
    for (const [name, is] of Object.entries(states)) column.classList.toggle(name, is);
    column.querySelector(".stays").style.height = `${100 * shares[slider]}%`;
    column.querySelector(".thumb").style.bottom = `${100 - levels[slider]}%`;
    put(this.bar(slider), "aria-valuenow", 100 - levels[slider]);
    const spoken = `${words[slider]}, ${levels[slider]} % removed${locked[slider] ? ", locked" : ""}`;
    put(this.bar(slider), "aria-valuetext", spoken);
  }

  paintChosen({ data, levels, locked, words, chosen }) {
    const { name, layers, weights, macs } = data.sliders[chosen], field = this.find("input");
    const together = layers.length > 1 ? `; moves ${layers.join(", ")}` : "";
    say(this.find(".name"), `${chosen + 1} · ${name}`);
    say(this.find(".keeps"), words[chosen]);
    say(this.find(".who .note"), `untouched: ${count(weights)} weights, ${count(macs)} MACs${together}`);
    put(field, "aria-label", `Sparsity of ${name} in per cent`);
    if (this.root.activeElement !== field) field.value = levels[chosen];
    put(this.find(".lock"), "aria-pressed", locked[chosen]);
    say(this.find(".lock span"), locked[chosen] ? "Locked" : "Lock");
    this.find(".previous").disabled = chosen === 0;
    this.find(".next").disabled = chosen === this.columns.length - 1;
  }

  paintCosts({ data, shares }) {
    for (const name of ["weights", "macs"]) this.find(`.${name}`).hidden = !data.terms;
    if (!data.terms) return;
    const now = cost(data.terms, shares), before = cost(data.terms, shares.map(() => 1));
    for (const name of ["weights", "macs"]) {
      say(this.find(`.${name} .label`), data.labels[name]);
      say(this.find(`.${name} .value`), count(now[name]));
      say(this.find(`.${name} .change`), relative(now[name], before[name]));
      say(this.find(`.${name} .note`), `of ${count(before[name])}`);
    }
  }

  /** Measured where these levels were measured; else predicted; else what was measured before. */
  paintAccuracy({ facts: { measured, prediction, original }, levels, waits }) {
    const box = this.find(".accuracy");
    box.hidden = !measured;
    if (!measured) return;
    const here = measured.levels?.every((level, slider) => level === levels[slider]);
    const kind = here ? (measured.exact ? "measured" : "partial") : prediction ? "predicted" : "stale";
    const { value, low, high } = kind === "predicted" ? predict(prediction, levels) : measured;
    const ends = `[${fixed(100 * low, 1)}, ${fixed(100 * high, 1)}]`, n = `n = ${fixed(measured.n, 0)}`;
    const last = `measured ${percent(measured.value)}, ${n}: ${measured.plan}${waits ? "; measuring" : ""}`;
    box.className = `accuracy ${kind}`;
    say(this.find(".tag"), KINDS[kind]);
    say(this.find(".accuracy .value"), percent(value));
    say(this.find(".rests"), kind === "predicted" ? `band ${ends}` : here ? `95 % ${ends}, ${n}` : "");
    say(this.find(".last"), here ? "" : last);
    Object.assign(this.find(".band").style, { left: `${100 * low}%`, width: `${100 * (high - low)}%` });
    this.find(".mark").style.left = `${100 * value}%`;
    this.find(".original").style.left = `${100 * original}%`;
  }
}

const NARROW = 13; // pixels: a column with less has no room for its number
const KINDS = { measured: "measured", partial: "measured so far", predicted: "predicted", stale: "of the plan before" };

/** "-37.2 %" against before. */
function relative(now, before) {
  if (now === before) return "unchanged";
  return (now > before ? "+" : "") + percent(now / before - 1);
}

/** Write only what changed: screen readers and layout are told of every write. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function put(element, attribute, value) {
  if (element.getAttribute(attribute) !== String(value)) element.setAttribute(attribute, value);
}
