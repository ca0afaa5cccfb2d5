"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Figures: colours are names of the page's own, so that a figure follows the theme.
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const names = ["paper", "ink", "muted", "rule", "accent", "soft"];
  const palette = () => {
    const style = getComputedStyle(root);
    return Object.fromEntries(names.map((name) => ["@" + name, style.getPropertyValue("--" + name).trim()]));
  };
  const coloured = (value, colours) => {
    if (typeof value === "string") return Object.hasOwn(colours, value) ? colours[value] : value;
    if (Array.isArray(value)) return value.map((item) => coloured(item, colours));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, colours)]));
    }
    return value;
  };
  const draw = (id) => {
    const place = document.getElementById(id);
    const colours = palette();
    const spec = coloured(figures[id], colours);
    const narrow = place.clientWidth < 400;
    const beside = window.matchMedia("(min-width: 56rem)").matches;
    const layout = spec.layout;
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.font = { family: getComputedStyle(root).getPropertyValue("--sans"), size: narrow ? 11 : 12, color: colours["@ink"] };
    layout.hoverlabel = { bgcolor: colours["@paper"], bordercolor: colours["@muted"], font: { color: colours["@ink"] }, align: "left" };
    layout.autosize = true;
    if (narrow) {
      // Estimates beside the rows do not fit on a phone; they stand in the table below.
      if ((layout.annotations || []).some((a) => a.name === "wide")) layout.margin.r = 12;
      layout.annotations = (layout.annotations || []).filter((a) => a.name !== "wide");
    }
    if (layout.meta === "beside" && beside) {
      layout.yaxis.showticklabels = false;
      layout.margin.l = 4;
    }
    place.dataset.form = `${narrow} ${beside}`;
    Plotly.react(place, spec.data, layout, { displayModeBar: false, responsive: true, showTips: false });
  };
  const redraw = () => Object.keys(figures).forEach(draw);
  if (Object.keys(figures).length) {
    redraw();
    window.addEventListener("resize", () => {
      const beside = window.matchMedia("(min-width: 56rem)").matches;
      for (const id of Object.keys(figures)) {
        const place = document.getElementById(id);
        if (`${place.clientWidth < 400} ${beside}` !== place.dataset.form) draw(id);
      }
    });
  }

  // Theme: the system's, until a reader chooses.
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const show = () => {
    button.setAttribute("aria-pressed", String(isDark()));
    redraw();
  };
  button.hidden = false;
  button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  dark.addEventListener("change", show);

  // Tables: a click on a heading sorts, typing filters.
  const valueOf = (cell) => (cell.dataset.sort === undefined ? cell.textContent.trim().toLowerCase() : Number(cell.dataset.sort));
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return a < b ? -1 : a > b ? 1 : 0;
  };
  for (const tool of all(".table.tool")) {
    const body = tool.querySelector("tbody");
    const rows = [...body.rows];
    const heads = all("thead th", tool);
    heads.forEach((head, column) => {
      const sorter = document.createElement("button");
      sorter.type = "button";
      sorter.textContent = head.textContent;
      head.replaceChildren(sorter);
      sorter.addEventListener("click", () => {
        const first = head.classList.contains("num") ? "descending" : "ascending";
        const other = first === "descending" ? "ascending" : "descending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const missing = (row) => head.classList.contains("num") && row.cells[column].dataset.sort === undefined;
        const sorted = [...rows].sort((a, b) => missing(a) - missing(b) || sign * compare(valueOf(a.cells[column]), valueOf(b.cells[column])));
        body.append(...sorted);
      });
    });
    const controls = tool.querySelector(".controls");
    const output = controls.querySelector("output");
    controls.hidden = false;
    controls.querySelector("input").addEventListener("input", (event) => {
      const wanted = event.target.value.trim().toLowerCase();
      let count = 0;
      for (const row of rows) {
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
        count += !row.hidden;
      }
      output.textContent = wanted ? `${count} of ${rows.length} rows` : `${rows.length} rows`;
    });
  }

  // Cards: the same, and only the first few until all are asked for.
  for (const block of all(".cards")) {
    const list = block.querySelector("ul");
    const cards = [...list.children];
    const controls = block.querySelector(".controls");
    const more = block.querySelector(".more");
    const first = Number(block.dataset.first);
    let everything = !more;
    const input = controls && controls.querySelector("input");
    const select = controls && controls.querySelector("select");
    const value = (card, key) => {
      const fact = all("[data-key]", card).find((item) => item.dataset.key === key);
      return fact ? Number(fact.dataset.sort) : -Infinity;
    };
    const update = () => {
      const wanted = input ? input.value.trim().toLowerCase() : "";
      const key = select ? select.value : "";
      const sorted = key ? [...cards].sort((a, b) => value(b, key) - value(a, key)) : cards;
      const matching = sorted.filter((card) => card.textContent.toLowerCase().includes(wanted));
      const shown = new Set(everything ? matching : matching.slice(0, first));
      for (const card of cards) card.hidden = !shown.has(card);
      list.append(...sorted);
      if (controls) controls.querySelector("output").textContent = `${shown.size} of ${cards.length} shown`;
    };
    if (controls) {
      controls.hidden = false;
      input.addEventListener("input", update);
      if (select) select.addEventListener("change", update);
    }
    if (more) {
      more.hidden = false;
      more.addEventListener("click", () => {
        everything = true;
        more.hidden = true;
        update();
      });
    }
    update();
  }
})();
