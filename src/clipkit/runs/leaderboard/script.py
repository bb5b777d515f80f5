"""The script of the leaderboard's page: tables that sort, filter and draw themselves as far as one scrolls.

`Board` is arithmetic on columns, and knows no page; below it is what draws. A column is
{title, texts} or {title, values, stds, digits, smaller}, where texts may be {known, index}: each text once.

Used by: clipkit.runs.leaderboard.page
"""

__all__ = ["SCRIPT"]

SCRIPT = r"""
"use strict";
const Board = {
  unpack(column) {
    const texts = column.texts;
    return texts && texts.known ? {...column, texts: texts.index.map((at) => texts.known[at])} : column;
  },
  shown(column, row) {
    if (column.texts) return column.texts[row];
    const value = column.values[row];
    if (value === null) return "";
    const format = (column.format ??= new Intl.NumberFormat("en-US",
      {minimumFractionDigits: column.digits, maximumFractionDigits: column.digits}));
    const std = column.stds ? column.stds[row] : null;
    return format.format(value) + (std === null ? "" : " ± " + format.format(std));
  },
  // of each text its place among all, with numbers inside in their own order; null of an empty one
  places(texts) {
    const collator = new Intl.Collator("en", {numeric: true, sensitivity: "base"});
    const order = new Map([...new Set(texts)].sort(collator.compare).map((text, at) => [text, at]));
    return texts.map((text) => text === "" ? null : order.get(text));
  },
  // the best first, or the first letter; what is missing stays last either way, what is equal in its order
  sorted(column, rows, reversed) {
    const way = (reversed ? -1 : 1) * (column.values && column.smaller === false ? -1 : 1);
    const values = column.texts ? Board.places(column.texts) : column.values;
    return rows.map((row, at) => [values[row], at, row]).sort(([a, i], [b, j]) =>
      a === null || b === null ? (a === null) - (b === null) || i - j : way * (a - b) || i - j
    ).map((each) => each[2]);
  },
  // rows that have all words somewhere; a word with a minus before it must be nowhere
  fitting(columns, rows, asked) {
    const words = asked.toLowerCase().split(/\s+/).filter((word) => word && word !== "-");
    if (!words.length) return rows;
    return rows.filter((row) => {
      const text = columns.map((column) => Board.shown(column, row)).join("\n").toLowerCase();
      return words.every((word) => word[0] === "-" ? !text.includes(word.slice(1)) : text.includes(word));
    });
  },
  // what the best cells of these rows show; none where all are alike
  best(column, rows) {
    if (!column.values || typeof column.smaller !== "boolean") return null;
    const known = rows.filter((row) => column.values[row] !== null);
    let least = Infinity, most = -Infinity;
    for (const row of known) {
      least = Math.min(least, column.values[row]);
      most = Math.max(most, column.values[row]);
    }
    return known.length < 2 || least === most ? null : (column.smaller ? least : most).toFixed(column.digits);
  },
  isBest(column, row, best) {
    return best !== null && column.values[row] !== null && column.values[row].toFixed(column.digits) === best;
  },
};

if (typeof document !== "undefined") {
  const PIECE = 100;  // rows drawn at a time
  const make = (kind, text, name) => {
    const node = document.createElement(kind);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  };
  const data = JSON.parse(document.getElementById("data").textContent);
  const place = (folder) => data.base + folder.split("/").map(encodeURIComponent).join("/");

  const draw = (box) => {
    const table = data[box.dataset.table];
    const columns = table.columns.map(Board.unpack);
    const all = Array.from({length: table.count}, (_, row) => row);
    const folders = columns.find((column) => column.title === "folder");
    let rows = all, drawn = 0, by = null, reversed = false, best = [];

    const filter = make("input");
    Object.assign(filter, {type: "search", placeholder: "filter: words, -without"});
    filter.setAttribute("aria-label", "Filter the table below");
    const told = make("span", undefined, "soft");
    told.setAttribute("role", "status");
    const bar = make("div", undefined, "bar");
    bar.append(filter, told);

    const scroll = make("div", undefined, "scroll");
    scroll.tabIndex = 0;
    const grid = make("table"), body = make("tbody"), head = make("tr");
    const heads = columns.map((column, at) => {
      const cell = make("th", undefined, column.values ? "n" : "");
      cell.scope = "col";
      const button = make("button");
      const cut = column.title.lastIndexOf("/") + 1;
      if (cut) button.append(make("small", column.title.slice(0, cut)));
      button.append(make("span", column.title.slice(cut)));
      button.title = column.title + (typeof column.smaller === "boolean"
        ? (column.smaller ? ": lower is better" : ": higher is better") : "");
      button.addEventListener("click", () => {
        reversed = by === at && !reversed;
        by = at;
        update();
      });
      cell.append(button);
      return cell;
    });
    head.append(make("th", "#", "n"), ...heads);
    const top = make("thead");
    top.append(head);
    grid.append(top, body);
    scroll.append(grid);
    box.append(bar, scroll);

    const line = (row, rank) => {
      const one = make("tr");
      one.append(make("td", String(rank), "n soft"));
      columns.forEach((column, at) => {
        const text = Board.shown(column, row);
        const long = ["overrides", "why"].includes(column.title);
        const cell = make("td", undefined, column.values ? "n" : long ? "wide" : "");
        if (folders && ["approach", "folder"].includes(column.title)) {
          const link = make("a", text);
          link.href = place(folders.texts[row]) + (table.reports[row] ? "/report.html" : "/");
          cell.append(link);
        } else if (long) cell.append(make("span", text));
        else if (Board.isBest(column, row, best[at])) cell.append(make("b", text, "best"));
        else if (column.title === "status") cell.append(make("span", text, "status " + text.split(" ")[0]));
        else cell.textContent = text;
        one.append(cell);
      });
      return one;
    };
    const more = () => {
      const end = Math.min(drawn + PIECE, rows.length);
      const piece = document.createDocumentFragment();
      for (; drawn < end; drawn++) piece.append(line(rows[drawn], drawn + 1));
      body.append(piece);
    };
    const update = () => {
      rows = Board.fitting(columns, all, filter.value);
      best = columns.map((column) => Board.best(column, rows));
      if (by !== null) rows = Board.sorted(columns[by], rows, reversed);
      const ranked = by === null ? table.by : by;
      heads.forEach((cell, at) => {
        const down = by === null ? columns[at].smaller === false : (columns[at].smaller === false) !== reversed;
        if (at === ranked) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        else cell.removeAttribute("aria-sort");
      });
      told.textContent = rows.length === all.length ? `${all.length.toLocaleString("en-US")} rows`
        : `${rows.length.toLocaleString("en-US")} of ${all.length.toLocaleString("en-US")} rows`;
      body.replaceChildren();
      drawn = 0;
      scroll.scrollTop = 0;
      more();
    };
    scroll.addEventListener("scroll", () => {
      if (drawn < rows.length && scroll.scrollTop + scroll.clientHeight > scroll.scrollHeight - 600) more();
    });
    let waiting;
    filter.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(update, all.length > 1000 ? 150 : 0);
    });
    update();
  };
  document.querySelectorAll("[data-table]").forEach(draw);
}
if (typeof module !== "undefined") module.exports = Board;
"""
