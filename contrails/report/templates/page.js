"use strict";

// Tables: a click on a heading sorts by its column, a second one the other way round; what has no value stays last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement, body = heading.closest("table").tBodies[0];
    const index = [...heading.parentElement.children].indexOf(heading);
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => row.children[index].dataset.value ?? row.children[index].textContent.trim();
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b), down)));
  });
}

function compare(a, b, down) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const order = isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
  return down ? -order : order;
}

// Charts: the legend hides lines by name, the pointer tells the values of those that it is near to.
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    for (const line of document.querySelectorAll(".line"))
      if (line.dataset.name === button.dataset.name) line.style.display = shown ? "" : "none";
  });
}

const tip = document.getElementById("tip");
for (const chart of document.querySelectorAll(".chart")) {
  const [left, top, right, bottom] = chart.dataset.area.split(" ").map(Number);
  const { x0, x1, y0, y1, xlog, ylog } = chart.dataset;
  const value = (share, first, last, log) =>
    log ? first * (last / first) ** share : +first + share * (last - first);
  const lines = [...chart.querySelectorAll(".line:not(.mark)")].map(line => [
    line, line.getAttribute("d").slice(1).split(/[ML]/).map(point => point.split(" ").map(Number))]);
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cursor.setAttribute("class", "cursor");
  const leave = () => { tip.hidden = true; cursor.remove(); };
  chart.addEventListener("pointerleave", leave);
  chart.addEventListener("pointermove", event => {
    const box = chart.getBoundingClientRect(), x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
    if (x < left || x > right) return leave();
    const said = [`${chart.dataset.x} ${short(value((x - left) / (right - left), x0, x1, xlog))}`];
    for (const [line, points] of lines) {
      if (line.style.display === "none") continue;
      const near = points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
      if (x < points[0][0] - 20 || x > points.at(-1)[0] + 20) continue;
      said.push(`${line.dataset.name}: ${short(value((bottom - near[1]) / (bottom - top), y0, y1, ylog))}`);
    }
    for (const [key, at] of Object.entries({ x1: x, x2: x, y1: top, y2: bottom })) cursor.setAttribute(key, at);
    chart.append(cursor);
    tip.replaceChildren(...said.flatMap(text => [text, document.createElement("br")]));
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
  });
}

function short(number) {
  return Math.abs(number) >= 1e-3 || number === 0 ? Number(number.toPrecision(4)).toString() : number.toExponential(1);
}

// Gallery: filter by kind, sort by a number, and enlarge; the four views of a record zoom together.
const list = document.querySelector(".records");
if (list) {
  const all = [...list.children], dialog = document.querySelector("dialog"), panes = dialog.querySelector(".panes");
  const order = document.getElementById("order");
  let at = 0, zoom = 1;
  const shown = () => [...list.children].filter(record => !record.hidden);

  for (const button of document.querySelectorAll(".filters button"))
    button.addEventListener("click", () => {
      for (const other of document.querySelectorAll(".filters button"))
        other.setAttribute("aria-pressed", other === button);
      for (const record of all) record.hidden = !!button.value && record.dataset.kind !== button.value;
    });
  order.addEventListener("change", () => {
    const [key, direction] = order.value.split(" ");
    list.append(...[...all].sort((a, b) => compare(a.dataset[key], b.dataset[key], direction === "down")));
  });

  const open = index => {
    const records = shown();
    at = (index + records.length) % records.length;
    const record = records[at], images = record.querySelectorAll("img");
    panes.querySelectorAll("img").forEach((image, i) => { image.src = images[i].src; image.alt = images[i].alt; });
    dialog.querySelector("p").textContent = `${at + 1} of ${records.length}: ${record.querySelector("div").innerText}`;
    setZoom(1);
    if (!dialog.open) dialog.showModal();
  };
  const setZoom = factor => {
    zoom = Math.min(16, Math.max(1, factor));
    panes.style.setProperty("--zoom", zoom);
  };
  list.addEventListener("click", event => {
    const record = event.target.closest(".record");
    if (record) open(shown().indexOf(record));
  });
  const actions = { previous: () => open(at - 1), next: () => open(at + 1), close: () => dialog.close(),
    in: () => setZoom(zoom * 2), out: () => setZoom(zoom / 2) };
  for (const button of dialog.querySelectorAll("button")) button.addEventListener("click", actions[button.value]);
  const keys = { ArrowLeft: "previous", ArrowRight: "next", "+": "in", "=": "in", "-": "out" };
  dialog.addEventListener("keydown", event => {
    if (keys[event.key]) { event.preventDefault(); actions[keys[event.key]](); }
  });
  panes.addEventListener("pointermove", event => {
    const pane = event.target.closest("figure");
    if (!pane) return;
    const box = pane.getBoundingClientRect();
    panes.style.setProperty("--x", `${100 * (event.clientX - box.left) / box.width}%`);
    panes.style.setProperty("--y", `${100 * (event.clientY - box.top) / box.height}%`);
  });
  panes.addEventListener("click", () => setZoom(zoom > 1 ? 1 : 4));
  panes.addEventListener("wheel", event => {
    event.preventDefault();
    setZoom(zoom * (event.deltaY < 0 ? 1.25 : 0.8));
  }, { passive: false });
}
