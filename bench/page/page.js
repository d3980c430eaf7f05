"use strict";
// Tables without this script are plain tables; everything here only adds to them.
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));

  // Colours: as the system has them, light, or dark; remembered where the browser allows it.
  const THEMES = ["auto", "light", "dark"];
  const button = document.getElementById("theme");
  const remembered = () => { try { return localStorage.getItem("bench-theme"); } catch { return null; } };
  const remember = (name) => { try { localStorage.setItem("bench-theme", name); } catch { /* a page opened as a file */ } };
  let theme = THEMES.includes(remembered()) ? remembered() : "auto";
  const setTheme = (name) => {
    theme = name;
    if (name === "auto") delete root.dataset.theme; else root.dataset.theme = name;
    button.textContent = `Theme: ${name}`;
    button.setAttribute("aria-label", `Colours: ${name === "auto" ? "as the system has them" : name}. Change`);
    recolour();
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
    remember(theme);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => recolour());

  // Figures: drawn when they come into view, in the colours of the page.
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const drawn = new Set();
  const colours = () => {
    const style = getComputedStyle(root);
    const get = (name) => style.getPropertyValue(name).trim();
    return { ink: get("--ink"), line: get("--line"), card: get("--card") };
  };
  const themed = (layout, ink) => {
    const look = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
    const axes = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
    for (const key of new Set(["xaxis", "yaxis", ...axes])) {
      look[key] = { ...layout[key], gridcolor: ink.line, zerolinecolor: ink.line, linecolor: ink.line, tickcolor: ink.line, automargin: true };
    }
    look.font = { ...layout.font, color: ink.ink, family: "system-ui, sans-serif", size: 12 };
    look.hoverlabel = { bgcolor: ink.card, bordercolor: ink.line, font: { color: ink.ink } };
    return look;
  };
  const OPTIONS = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false };
  const full = (layout, height, ink) => ({
    margin: { l: 62, r: 18, t: 14, b: 52 }, legend: { orientation: "h", y: -0.22 }, ...layout, ...themed(layout, ink),
    height, autosize: true,
  });
  const dressed = (trace, ink) => (trace.type === "heatmap" ? { ...trace, textfont: { color: ink.ink } } : trace);
  const draw = (canvas) => {
    const number = Number(canvas.dataset.figure);
    if (drawn.has(canvas) || !window.Plotly) return Promise.resolve();
    drawn.add(canvas);
    const { data, layout = {}, height } = specs[number];
    const ink = colours();
    canvas.replaceChildren();
    return Plotly.newPlot(canvas, data.map((trace) => dressed(trace, ink)), full(layout, height, ink), OPTIONS);
  };
  function recolour() {
    const ink = colours();
    for (const canvas of drawn) {
      const { data, layout = {}, height } = specs[Number(canvas.dataset.figure)];
      Plotly.react(canvas, data.map((trace) => dressed(trace, ink)), full(layout, height, ink), OPTIONS);
    }
  }
  const canvases = all(".canvas");
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "400px" });
  canvases.forEach((canvas) => watcher.observe(canvas));
  addEventListener("beforeprint", () => canvases.forEach(draw));

  // Tables: sorted by a click on a header, and back in the order they came in by a third one.
  for (const table of all("table")) {
    table.classList.add("live");
    const body = table.tBodies[0];
    const order = Array.from(body.rows);
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      const sorter = head.querySelector("button");
      if (!sorter) return;
      const { kind, first } = sorter.dataset;
      const second = first === "ascending" ? "descending" : "ascending";
      sorter.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const next = now === first ? second : now === second ? null : first;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (next) head.setAttribute("aria-sort", next);
        const rows = next ? sorted(order, column, kind, next === "ascending" ? 1 : -1) : order;
        body.append(...rows);
      });
    });
  }
  function sorted(rows, column, kind, sign) {
    const key = (row) => {
      const cell = row.cells[column];
      const text = cell.dataset.sort ?? cell.textContent.trim();
      return kind === "text" ? text.toLowerCase() : text === "" ? null : Number(text);
    };
    const keyed = rows.map((row, place) => ({ row, place, key: key(row) }));
    keyed.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
      return (a.key < b.key ? -1 : a.key > b.key ? 1 : 0) * sign || a.place - b.place;
    });
    return keyed.map((each) => each.row);
  }

  // The leaderboard's filters.
  for (const form of all("form.filters")) {
    form.hidden = false;
    const section = form.closest("section");
    const apply = () => {
      const values = new FormData(form);
      const text = (values.get("text") || "").toLowerCase();
      const protocol = values.get("protocol") || "", dataset = values.get("dataset") || "";
      const controls = values.has("controls");
      let shown = 0, total = 0;
      for (const board of all(".board", section)) {
        board.hidden = Boolean(protocol) && board.dataset.board !== protocol;
        for (const row of all("tbody tr", board)) {
          row.hidden = !row.dataset.text.toLowerCase().includes(text) || (!controls && row.dataset.role === "control");
          if (!board.hidden) { total += 1; shown += row.hidden ? 0 : 1; }
        }
        for (const cell of all("[data-dataset]", board)) cell.hidden = Boolean(dataset) && cell.dataset.dataset !== dataset;
      }
      form.querySelector("output").textContent = shown < total ? `${shown} of ${total} rows` : "";
    };
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  // A link to a trial opens it.
  const open = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target instanceof HTMLDetailsElement) { target.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", open);
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest('a[href^="#"]') : null;
    if (link && link.hash === location.hash) open();
  });
  setTheme(theme);
  open();
})();
