// Nothing is lost without this: tables stand as they are, and a point leads to its run's row.
for (const table of document.querySelectorAll("table")) new Tablesort(table);

// A point says its run: the row that it leads to, beside it.
const tip = document.createElement("dl");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);

function rowOf(link) {
  return link && document.getElementById(link.getAttribute("xlink:href").slice(1));
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function said(row) {
  const heads = row.closest("table").tHead.rows[0].cells;
  return Array.from(row.cells).flatMap((cell, k) => {
    if (cell.textContent === "\u2013") return [];
    const pair = document.createElement("div");
    const value = document.createElement("dd");
    value.append(...cell.cloneNode(true).childNodes);
    pair.append(element("dt", heads[k].textContent), value);
    return [pair];
  });
}

document.addEventListener("pointerover", (event) => {
  const link = event.target.closest("svg a");
  const row = rowOf(link);
  tip.hidden = !row;
  if (!row) return;
  tip.replaceChildren(...said(row));
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${scrollX + Math.max(8, Math.min(event.clientX + 12, room))}px`;
  const above = event.clientY - tip.offsetHeight - 12;
  tip.style.top = `${scrollY + (above > 8 ? above : event.clientY + 16)}px`;
});

// A figure's series can be hidden and shown.
const MOST_SERIES = 24;
for (const figure of document.querySelectorAll("figure")) {
  const drawn = Array.from(figure.querySelectorAll("[data-series]"));
  const names = new Set(drawn.map((part) => part.dataset.series).filter(Boolean));
  if (names.size < 2 || names.size > MOST_SERIES) continue;
  const switches = document.createElement("p");
  switches.className = "switches";
  for (const name of names) {
    const button = element("button", name);
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      for (const part of drawn) {
        if (part.dataset.series === name) part.style.display = shown ? "" : "none";
      }
    });
    switches.append(button);
  }
  figure.querySelector("figcaption").before(switches);
}
