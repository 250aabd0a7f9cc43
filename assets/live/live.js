/* What the reader does with the bars. `numbers.js` and `drawing.js` stand above, in the same module.

   Streamlit calls the default function when the component appears and after every run that changed its
   data; the elements stay. What the reader sets is shown at once and kept as a wish until the server
   confirms the commit that carried it, so that the echo of an older commit never moves a bar back. */

const PATIENCE = 250; // milliseconds after the last key press until the plan is sent
const CLICK = 3; // pixels that a press may move without being a drag
const STEPS = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 };

export default function (component) {
  const { parentElement } = component;
  parentElement.live ??= new Live(parentElement);
  parentElement.live.update(component);
  return () => parentElement.live.leave();
}

/** What the reader has set and the server has not confirmed yet: slider -> value. */
class Wishes {
  #held = new Map(); // slider -> [value, number of the commit that carried it first; Infinity before]

  set(slider, value) {
    this.#held.set(slider, [value, Infinity]);
  }

  get unsent() {
    return [...this.#held.values()].some(([, sent]) => sent === Infinity);
  }

  /** All of them by name, as part of commit `number`: the server may never have seen the one before. */
  send(number, sliders) {
    const message = {};
    for (const [slider, wish] of this.#held) {
      wish[1] = Math.min(wish[1], number);
      message[sliders[slider].name] = wish[0];
    }
    return message;
  }

  confirm(number) {
    for (const [slider, [, sent]] of this.#held) if (sent <= number) this.#held.delete(slider);
  }

  /** `values` with the wishes in their places. */
  over(values) {
    return values.map((value, slider) => this.#held.get(slider)?.[0] ?? value);
  }
}

class Live {
  constructor(root) {
    this.root = root;
    this.drawing = new Drawing(root);
    this.place = root.host.closest(".st-key-live") ?? root.host; // holds the facts too; the host alone: about to go
    this.facts = {};
    this.chosen = 0;
    this.number = 0; // of the last commit
    this.listen();
  }

  listen() {
    const on = (selector, handlers) => {
      const element = this.root.querySelector(selector);
      for (const [type, handler] of Object.entries(handlers)) element.addEventListener(type, handler);
      return element;
    };
    const strip = on(".strip", {
      pointerdown: (event) => this.grab(event),
      pointermove: (event) => this.drag(event),
      pointerup: (event) => this.release(event),
      lostpointercapture: (event) => this.release(event),
      pointercancel: () => this.letGo(),
      keydown: (event) => this.press(event),
      focusin: (event) => this.choose(this.drawing.sliderOf(event)),
      focusout: () => this.commit(),
    });
    on(".previous", { click: () => this.step(-1) });
    on(".next", { click: () => this.step(1) });
    on(".lock", { click: () => this.toggleLock() });
    on("input", {
      input: (event) => this.type(event.target.value),
      change: () => this.commitSoon(),
      keydown: (event) => event.key === "Enter" && this.commit(),
      blur: () => (this.commit(), this.draw()),
    });
    this.sizes = new ResizeObserver(() => this.draw());
    this.sizes.observe(strip);
    this.news = new MutationObserver(() => this.read());
    this.news.observe(this.place, { subtree: true, childList: true, attributes: true });
  }

  leave() {
    this.commit();
    this.sizes.disconnect();
    this.news.disconnect();
  }

  // what the server says

  /** The sliders, their levels and locks. */
  update({ data, setTriggerValue }) {
    const others = data.scene !== this.data?.scene;
    this.data = data;
    this.send = setTriggerValue;
    if (others) this.begin();
    this.levels.confirm(data.commit);
    this.locks.confirm(data.commit);
    this.drawing.share(data);
    this.read();
  }

  /** Other sliders: nothing is wished for, nothing is held. */
  begin() {
    Object.assign(this, { levels: new Wishes(), locks: new Wishes(), held: null });
    this.number = Math.max(this.number, this.data.commit);
    this.chosen = Math.min(this.chosen, this.data.sliders.length - 1);
    this.drawing.build(this.data);
  }

  /** What is measured and predicted: known later than the sliders, and written beside the component. */
  read() {
    const text = this.place.querySelector("[data-facts]")?.dataset.facts;
    const found = [text ? JSON.parse(text) : {}, this.facts];
    this.facts = found.find(({ scene }) => scene === this.data.scene) ?? {};
    this.draw();
  }

  // what the reader does

  choose(slider) {
    if (slider < 0 || slider >= this.data.sliders.length) return;
    if (slider !== this.chosen) this.commit();
    this.chosen = slider;
    this.draw();
  }

  /** Choose a neighbour. */
  step(by) {
    this.choose(this.chosen + by);
    this.drawing.reveal(this.chosen);
  }

  level(slider) {
    return this.levels.over(this.data.levels)[slider];
  }

  set(slider, level) {
    this.levels.set(slider, within(level));
    this.draw();
  }

  grab(event) {
    const slider = this.drawing.sliderOf(event);
    if (slider < 0 || event.button !== 0 || this.held) return;
    event.preventDefault();
    const bar = this.drawing.bar(slider), level = this.level(slider);
    bar.focus({ preventScroll: true });
    bar.setPointerCapture(event.pointerId);
    this.held = { slider, level, from: level, start: event.clientY, height: bar.clientHeight, pointer: event.pointerId };
    this.draw();
  }

  drag({ pointerId, clientY }) {
    const held = this.held;
    if (held?.pointer !== pointerId) return;
    const way = clientY - held.start;
    held.moved ||= Math.abs(way) >= CLICK;
    if (held.moved) held.level = within(Math.round(held.from + (100 * way) / held.height));
    this.draw();
  }

  release({ pointerId }) {
    if (this.held?.pointer !== pointerId) return;
    const { slider, level, moved } = this.letGo();
    if (!moved || level === this.level(slider)) return;
    this.set(slider, level);
    this.commit();
  }

  /** End the drag; by itself, this leaves the bar where it was. */
  letGo() {
    const held = this.held;
    this.held = null;
    this.draw();
    return held;
  }

  press(event) {
    const slider = this.drawing.sliderOf(event), { key } = event;
    if (slider < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    if (key in STEPS) this.set(slider, this.level(slider) - STEPS[key]);
    else if (key === "Home") this.set(slider, 100);
    else if (key === "End") this.set(slider, 0);
    else if (key === "Escape") this.letGo();
    else if (key === "Enter") this.commit();
    else if (key === "l" || key === "L") this.toggleLock();
    else return;
    event.preventDefault();
    this.commitSoon();
  }

  type(text) {
    if (/^\d{1,3}$/.test(text) && Number(text) <= 100) this.set(this.chosen, Number(text));
  }

  toggleLock() {
    this.locks.set(this.chosen, !this.locks.over(this.data.locked)[this.chosen]);
    this.draw();
    this.commit();
  }

  commitSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.commit(), PATIENCE);
  }

  /** Send what was set, once. */
  commit() {
    clearTimeout(this.timer);
    if (!this.levels.unsent && !this.locks.unsent) return;
    const { scene, sliders } = this.data;
    const commit = (this.number += 1);
    const levels = this.levels.send(commit, sliders), locks = this.locks.send(commit, sliders);
    this.send("commit", { commit, scene, levels, locks });
  }

  /** Draw with the next frame, once. */
  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      const { data, facts, held, chosen } = this;
      const levels = this.levels.over(data.levels), locked = this.locks.over(data.locked);
      if (held) levels[held.slider] = held.level;
      this.drawing.paint({ data, facts, held, chosen, levels, locked, waits: !held && !this.levels.unsent });
    });
  }
}

const within = (level) => Math.min(Math.max(level, 0), 100);
