"use strict";
// The live progress on top of a served page: asks the server that the page came from, and no one else.
(() => {
  const strip = document.getElementById("live");
  const mine = strip.dataset.page; // which page this is; "" while the first one is being made
  const NEXT = 1000, HIDDEN = 10000, MOST = 12;
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const clock = (seconds) => {
    const whole = Math.max(0, Math.round(seconds));
    const pad = (number) => String(number).padStart(2, "0");
    const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
    return hours ? `${hours}:${pad(minutes)}:${pad(whole % 60)}` : `${minutes}:${pad(whole % 60)}`;
  };
  const number = (value, digits) => (value === null ? "" : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));

  function head(told) {
    const line = make("div", "told");
    if (told.total) {
      const bar = make("progress");
      bar.max = told.total;
      bar.value = told.ended;
      bar.setAttribute("aria-label", `${told.ended} of ${told.total} trials have ended`);
      line.append(bar);
    }
    const counts = [...(told.state === "running" ? [`${told.running} running`, ...(told.waiting ? [`${told.waiting} waiting`] : [])] : []), ...Object.entries(told.counts).map(([kind, count]) => `${count} ${kind}`)];
    line.append(
      make("strong", "", told.total ? `${told.ended}/${told.total} trials` : `${told.ended} trials`),
      ...(counts.length ? [make("span", "", counts.join(" · "))] : []),
      make("span", "", told.best ? `best ${(100 * told.best[0]).toFixed(1)} % (${told.best[1]})` : "no best yet"),
      make("span", "", clock(told.elapsed)),
    );
    return line;
  }
  function rows(told) {
    const scroll = make("div", "scroll"), table = make("table"), top = make("thead"), names = make("tr"), body = make("tbody");
    scroll.tabIndex = 0;
    for (const [name, kind] of [["trial"], ["epoch", "number"], ["loss", "number"], ["images/s", "number"], ["left", "number"], ["configuration"]]) {
      const cell = make("th", kind, name);
      cell.scope = "col";
      names.append(cell);
    }
    for (const row of told.rows.slice(0, MOST)) {
      const line = make("tr"), first = make("th", "", row.label);
      first.scope = "row";
      line.append(
        first,
        make("td", "number", row.epoch >= row.epochs ? "evaluating" : `${row.epoch}/${row.epochs}`),
        make("td", "number", number(row.loss, 3)),
        make("td", "number", number(row.images_per_second, 0)),
        make("td", "number", row.seconds_left === null ? "" : clock(row.seconds_left)),
        make("td", "", row.settings),
      );
      body.append(line);
    }
    top.append(names);
    table.append(top, body);
    scroll.append(table);
    const more = told.running - Math.min(told.rows.length, MOST);
    return more > 0 ? [scroll, make("p", "quiet", `and ${more} more in training`)] : [scroll];
  }
  function shown(view) {
    const part = make("div", `live-sweep ${view.standing}`), title = make("p", "live-title");
    title.append(make("i", "dot"), make("strong", "", view.sweep), make("span", "", ` ${view.said}`));
    part.append(title);
    for (const told of view.drivers) {
      part.append(head(told));
      if (view.standing === "running" && told.rows.length) part.append(...rows(told));
    }
    return part;
  }
  function news(page, building, problem) {
    if (problem) return [make("p", "live-news", problem)];
    if (page === mine) return [];
    if (!mine) return [make("p", "live-news", building ? "The report is being made; it opens here by itself." : "")];
    const line = make("p", "live-news", "There are newer results. "), button = make("button", "", "Show them");
    button.type = "button";
    button.addEventListener("click", () => location.reload());
    line.append(button);
    return [line];
  }
  function show(answer) {
    if (!mine && answer.page) { location.reload(); return; }
    const left = strip.querySelector(".scroll")?.scrollLeft ?? 0;
    const focused = document.activeElement instanceof HTMLElement && strip.contains(document.activeElement) ? document.activeElement.className : null;
    strip.replaceChildren(...news(answer.page, answer.building, answer.problem), ...answer.views.map(shown));
    strip.hidden = !strip.childElementCount;
    const scroll = strip.querySelector(".scroll");
    if (scroll) scroll.scrollLeft = left;
    if (focused !== null) strip.querySelector(focused ? `.${focused}` : "button")?.focus();
  }
  let last = "";
  async function look() {
    try {
      const answer = await fetch("live.json", { cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      const text = await answer.text();
      if (text !== last) { show(JSON.parse(text)); last = text; }
      strip.classList.remove("lost");
    } catch {
      last = "";
      strip.hidden = false;
      if (!strip.classList.contains("lost")) strip.prepend(make("p", "live-news", "The server does not answer: it was ended, or cannot be reached. What follows is what it said last."));
      strip.classList.add("lost");
    }
    setTimeout(look, document.hidden ? HIDDEN : NEXT);
  }
  look();
})();
